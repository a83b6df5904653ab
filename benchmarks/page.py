"""What the scripts that write pages have in common: rows of results, marks in a page, and what something ran on."""

import json


def rows_of(path):
    """Return what the lines of a .jsonl file hold."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def spliced(page, script, lines):
    """Return the text of a page with these lines between the marks of a script."""
    begin, end = f"<!-- begin of what {script} writes -->", "<!-- end of it -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end, 1)
    return "\n".join([before + begin, "", *lines, "", end]) + after


def hardware(machine):
    """Return the processor, its cores and the devices, where these are named, of what `machine.describe` returned."""
    devices = f", {machine['devices']}" if "devices" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{devices}"


def packages(machine, *names):
    """Return packages with their versions: those named, otherwise all that were installed."""
    versions = machine["packages"]
    return ", ".join(f"{name} {versions[name]}" for name in names or versions if versions[name])


def machine_line(machine):
    """Return one line on what something ran on."""
    commit = f", commit {machine['commit']}" if machine.get("commit") else ""
    return f"{hardware(machine)}; {packages(machine)}{commit}; {machine['date']}"
