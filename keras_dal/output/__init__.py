"""How things are said: tables as text and HTML, lines and warnings."""
