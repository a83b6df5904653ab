"""A program that uses the package, for the type checker: what its author sees of the public surface. Never run."""

from typing import Any

import keras_dal
from keras_dal import plots


def finish(model: Any, x: Any, y: Any) -> float:
    result: keras_dal.Result = keras_dal.converge(model, x, y, tol=1e-3, validation_data=(x, y), gated=False)
    result.choose(0).rescale()
    certificate: keras_dal.Certificate = result.certificate
    return result.loss if result.reached else certificate.bound(100)


def measure(model: Any, x: Any, y: Any) -> tuple[float, int | None, str]:
    report: keras_dal.AlignmentReport = keras_dal.alignment(model, x, y, decide_separability=False)
    structure: keras_dal.Structure = keras_dal.find_structure(model, parameters="head")
    proved = keras_dal.certify(model, x, y, batch_size=32)
    steps = proved.steps_for(1e-3)
    return report.alignment, steps, f"{structure.num_features} {report.summary()} {proved.to_json()}"


def train(model: Any, optimizer: Any) -> dict[str, keras_dal.Certificate]:
    wrap = keras_dal.Wrap(optimizer, explore=0.6, noise=1e-3)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.compile(wrap)
    model.fit(callbacks=[monitor])
    wrap.switch(model)
    return monitor.certificates


def widen(model: Any, x: Any) -> float:
    wide = keras_dal.add_gated_head(model, x, seed=0)
    operator = keras_dal.tangent_operator(wide, x, max_bytes=2**20)
    return operator.num_bytes


def look(model: Any, x: Any, y: Any) -> float:
    curve: keras_dal.WidthCurve = keras_dal.width_curve(model, x, y, widths=[0, 1, 2], draws=1, seed=0)
    plots.width(curve, "width.png")
    solved: keras_dal.Result = keras_dal.finish(model, x, y, verbose=0)
    return solved.loss - curve.infimum[0][1]


def draw(result: keras_dal.Result, report: keras_dal.AlignmentReport, axes: Any) -> None:
    plots.curves({"two phases": {"loss": [1.0, 0.5]}}, ax=axes)
    plots.solution(result, "path.png")
    plots.spectrum(report, ax=axes)
    plots.bound(result.certificate, path="bound.png")
