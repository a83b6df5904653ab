"""Gates: heads whose Jacobian gains columns with every gate, not only with every feature."""

import inspect
from typing import Any, Literal

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_dal import heads
from keras_dal._backend import arrays
from keras_dal.features.samples import check_count

_GATES = ("learned", "random")
_OF_DENSE = ("name", "trainable", "dtype", *inspect.signature(keras.layers.Dense.__init__).parameters)
_BLOCK = 16_384  # samples that are looked at together
_FLOAT32 = np.finfo(np.float32)


def check_sharpness(sharpness):
    """Raise a ValueError for a slope of gates that is none."""
    if not 0 < sharpness < np.inf:
        raise ValueError(f"sharpness must be positive and finite. Received: sharpness={sharpness!r}")


class Gated(keras.layers.Layer):
    """Standardized inputs and the parameters of fixed gates, which are no part of what is trained."""

    def __init__(self, num_gates, sharpness, seed, **kwargs):
        super().__init__(**kwargs)
        check_sharpness(sharpness)
        self.num_gates, self.sharpness = int(num_gates), float(sharpness)
        self.seed = seed if seed is None else int(seed)  # Keras takes no integer of NumPy

    def _build_gates(self, m, random):
        gaussian = keras.initializers.RandomNormal(stddev=m**-0.5, seed=self.seed) if random else "zeros"
        self.gate_kernel = self._fixed("gate_kernel", (m, self.num_gates), gaussian)
        self.gate_bias = self._fixed("gate_bias", (self.num_gates,), "zeros")
        self.mean = self._fixed("mean", (m,), "zeros")
        self.scale = self._fixed("scale", (m,), "ones")

    def _fixed(self, name, shape, initializer):
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False)

    def _standardize(self, inputs):
        return (inputs - self.mean) / self.scale

    def _preactivation(self, u):
        return ops.matmul(u, self.gate_kernel) + self.gate_bias

    def _sigmoid(self, preactivation):
        return ops.sigmoid(ops.multiply(preactivation, self.sharpness))

    def adapt(self, features: Any) -> None:
        """Standardize by these features and put the threshold of every random gate through one of them.

        Args:
            features: array of shape `(n, m)`, the layer's inputs on the training samples.

        Raises:
            ValueError: another shape, no features, or some that are not finite.
        """
        features = np.asarray(features)
        if features.ndim != 2 or not features.size or not np.isfinite(features.sum(dtype=np.float64)):
            raise ValueError(
                f"adapt needs finite features of shape (n, m). Received: features of shape {features.shape}"
            )
        if not self.built:
            self.build(features.shape)
        mean, scale = _mean_and_deviation(features)
        computed = ml_dtypes.finfo(self.compute_dtype)  # in which what is below its range would divide by zero
        eps, tiny = (max(float(getattr(each, name)) for each in (_FLOAT32, computed)) for name in ("eps", "tiny"))
        # a feature that moves by rounding alone, or not at all, stays at zero, as in Normalization
        scale[scale <= np.maximum(eps * np.abs(mean), tiny)] = 1.0
        self.mean.assign(mean)
        self.scale.assign(scale)
        if self._random:
            through = np.random.default_rng(self.seed).integers(len(features), size=self.num_gates)
            u = (features[through] - mean) / scale
            self.gate_bias.assign(-np.einsum("hm,mh->h", u, _numpy(self.gate_kernel)))

    def _gates(self, kernel, bias):
        """Return what the heads in NumPy need to compute gates of this kernel and bias."""
        values = {"mean": self.mean, "scale": self.scale, "gate_kernel": kernel, "gate_bias": bias}
        return {name: _numpy(value) for name, value in values.items()} | {"sharpness": self.sharpness}

    @property
    def gates_frozen(self) -> bool:
        """True when the outputs are linear in the trainable parameters."""
        return self._random

    def freeze_gates(self, noise: float = 0.0, seed: int | None = None) -> None:
        """Fix learned gates where they are, plus Gaussian noise; a second call, or random gates, change nothing.

        Args:
            noise: standard deviation of the noise, relative to that of the gates' parameters.
            seed: integer for the noise.

        Raises:
            ValueError: negative noise.
        """
        if not noise >= 0:
            raise ValueError(f"noise must not be negative. Received: noise={noise!r}")
        if not self.gates_frozen:
            self._freeze(noise, seed)


@keras.saving.register_keras_serializable(package="keras_dal")
class GatedDense(Gated):
    """`h = p * sigmoid(sharpness * gate)` with `p = u W + w` and `u = (x - mean) / scale`.

    With learned gates `gate = p` while exploring (SiLU at sharpness 1, nearly ReLU above 10) and `gate = u R + r` once
    `freeze_gates` has set `R = W`, `r = w` plus noise. With random gates R is Gaussian from the start. With its gates
    fixed the layer is linear in `(W, w)`, and the Jacobian of a linear layer V on top of it, whose row for sample i and
    output j is `(V_j * g_i) kron (u_i, 1)`, has rank `min(nC, H (m + 1))` for almost every V and R as soon as `H >= C`
    (the paper's way to fulfil the data-architecture alignment condition; random gates are ours).

    Inputs are of shape `(..., m)`, usually `(n, m)`, and outputs of shape `(..., H)`.

    Args:
        units: number H of gated units.
        gates: `"learned"` or `"random"`.
        sharpness: positive slope of the sigmoid in the gate's pre-activation.
        kernel_initializer: initializer of W, shape `(m, H)`.
        kernel_regularizer: regularizer of W.
        seed: integer for the random gates.

    Raises:
        ValueError: units or sharpness not positive, or another name for `gates`.
    """

    def __init__(
        self,
        units: int,
        gates: Literal["learned", "random"] = "learned",
        sharpness: float = 10.0,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        check_count("units", units)
        if gates not in _GATES:
            raise ValueError(f"gates must be one of {_GATES}. Received: gates={gates!r}")
        super().__init__(units, sharpness, seed, **kwargs)
        self.units, self.gates = self.num_gates, gates
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self._build_gates(input_shape[-1], self._random)
        self.frozen = self._fixed("frozen", (), "ones" if self._random else "zeros")

    def call(self, inputs: Any) -> Any:
        u = self._standardize(inputs)
        linear, gate = ops.matmul(u, self.kernel) + self.bias, self._preactivation(u)
        if self.gates == "learned":  # a weight decides, not a Python flag, so that a compiled function follows it
            gate = ops.where(self.frozen > 0.5, gate, linear)
        return linear * self._sigmoid(gate)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.units)

    @property
    def _random(self):
        return self.gates == "random"

    @property
    def gates_frozen(self) -> bool:
        """True when the layer is linear in its kernel and bias."""
        return bool(_numpy(self.frozen) > 0.5)

    def _freeze(self, noise, seed):
        gates = np.concatenate([_numpy(self.kernel), _numpy(self.bias)[None]])
        gates += noise * gates.std() * np.random.default_rng(seed).standard_normal(gates.shape)
        self.gate_kernel.assign(gates[:-1])
        self.gate_bias.assign(gates[-1])
        self.frozen.assign(1.0)

    def linear_head(self, output_layer: Any) -> Any:
        """Return the head that this layer and a `Dense` layer after it make, with the gates as they are now.

        Args:
            output_layer: that `Dense` layer, built.

        Returns:
            A `heads.GatedHead`, and the variables it is linear in, in the order of its shapes.
        """
        bias = (output_layer.bias,) if output_layer.use_bias else ()
        gates = (self.gate_kernel, self.gate_bias) if self.gates_frozen else (self.kernel, self.bias)
        output = {"output_kernel": _numpy(output_layer.kernel), "use_bias": output_layer.use_bias}
        head = heads.GatedHead(**self._gates(*gates), **output)
        return head, (self.kernel, self.bias, *bias)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "gates": self.gates,
            "sharpness": self.sharpness,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_dal")
class GatedBranch(Gated):
    """`activation(dense(z) + sum_k g_k (u W_k + w_k))`: a linear head beside a mixture of linear maps, at first zero.

    The K gates `g = sigmoid(sharpness (u R + r))` with Gaussian R are shared by all outputs and stay as they are, so
    the logits are linear in the parameters of `linear_head` from the start. The Jacobian of the mixture is
    `A kron I_C` with rows `g_i kron (u_i, 1)` of A. Its rank is `min(n, K (m + 1))` for almost every R where all
    features are independent, and `min(n, K (r + 1))` where r of them are: one small factorization, whatever C is,
    solves for any logits of the training samples (our derivation).

    Inputs are of shape `(..., m)`, usually `(n, m)`, and outputs of shape `(..., C)`.

    Args:
        dense: the `keras.layers.Dense` head, or its configuration; its activation is applied after the sum.
        num_gates: number K of gates.
        sharpness: positive slope of the sigmoid in the gate's pre-activation.
        seed: integer for the random gates.

    Raises:
        ValueError: num_gates or sharpness not positive.
    """

    _random = True

    def __init__(self, dense: Any, num_gates: int, sharpness: float = 10.0, seed: int | None = None, **kwargs: Any):
        check_count("num_gates", num_gates)
        if isinstance(dense, dict):
            dense = keras.saving.deserialize_keras_object(dense)
        config = dense.get_config()  # a subclass may have more, which only it understands
        dense = keras.layers.Dense.from_config({name: config[name] for name in _OF_DENSE if name in config})
        of_outputs = {"dtype": dense.dtype_policy, "activity_regularizer": dense.activity_regularizer}
        super().__init__(num_gates, sharpness, seed, **{**of_outputs, **kwargs})
        self._dense_config = keras.saving.serialize_keras_object(dense)
        self.activation = dense.activation
        of_sum = {"activation": "linear", "activity_regularizer": None, "dtype": self.dtype_policy}
        self.dense = keras.layers.Dense.from_config({**dense.get_config(), **of_sum})

    def build(self, input_shape: Any) -> None:
        m, outputs = input_shape[-1], self.dense.units
        self.dense.build(input_shape)
        self.kernel = self.add_weight(name="kernel", shape=(m, self.num_gates, outputs), initializer="zeros")
        self.bias = self.add_weight(name="bias", shape=(self.num_gates, outputs), initializer="zeros")
        for variable in (self.kernel, self.bias):
            variable.held_while_exploring = True  # the branch is solved for, not descended: its smoothness is huge
        self._build_gates(m, random=True)

    @property
    def is_zero(self) -> bool:
        """Whether the mixture adds nothing, so that gates can move without a change of the outputs."""
        return not (_numpy(self.kernel).any() or _numpy(self.bias).any())

    def without_mixture(self, inputs: Any) -> Any:
        """Return what the layer computes while its mixture is zero."""
        return self.activation(self.dense(inputs))

    def call(self, inputs: Any) -> Any:
        u = self._standardize(inputs)
        maps = ops.tensordot(u, self.kernel, 1) + self.bias
        mixed = ops.einsum("...k,...kc->...c", self._sigmoid(self._preactivation(u)), maps)
        return self.activation(self.dense(inputs) + mixed)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.dense.units)

    def linear_head(self) -> Any:
        """Return the sum of the mixture and the dense head.

        Returns:
            A `heads.SumHead`, and the variables it is linear in, in the order of its shapes.
        """
        dense, bias = self.dense, (self.dense.bias,) if self.dense.use_bias else ()
        mixture = heads.MixtureHead(**self._gates(self.gate_kernel, self.gate_bias), num_outputs=dense.units)
        head = heads.SumHead([mixture, heads.DenseHead(dense.kernel.shape[0], dense.units, dense.use_bias)])
        return head, (self.kernel, self.bias, dense.kernel, *bias)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dense": self._dense_config,
            "num_gates": self.num_gates,
            "sharpness": self.sharpness,
            "seed": self.seed,
        }


def is_held_while_exploring(variable):
    """Return whether a trainable variable stays as it is in the first phase of a `Wrap`."""
    return getattr(variable, "held_while_exploring", False)


def _mean_and_deviation(features):
    """Return both in float64, block by block: features may be larger than memory."""
    blocks = list(arrays.slices(len(features), _BLOCK))
    mean = sum(features[rows].sum(axis=0, dtype=np.float64) for rows in blocks) / len(features)
    return mean, np.sqrt(sum(np.square(features[rows] - mean).sum(axis=0) for rows in blocks) / len(features))


def _numpy(variable):
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
