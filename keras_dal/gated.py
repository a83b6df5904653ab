"""Gated units: a head whose Jacobian gains columns with every unit, not only with every feature."""

import keras
import numpy as np
from keras import ops

from keras_dal import heads

_GATES = ("learned", "random")


@keras.saving.register_keras_serializable(package="keras_dal")
class GatedDense(keras.layers.Layer):
    """`h = p * sigmoid(sharpness * gate)` with `p = u W + w` and `u = (x - mean) / scale`.

    With learned gates `gate = p` while exploring (SiLU at sharpness 1, nearly ReLU above 10) and `gate = u R + r` once
    `freeze_gates` has set `R = W`, `r = w` plus noise. With random gates R is Gaussian from the start. With its gates
    fixed the layer is linear in `(W, w)`, and the Jacobian of a linear layer V on top of it, whose row for sample i and
    output j is `(V_j * g_i) kron (u_i, 1)`, has rank `min(nC, H (m + 1))` for almost every V and R as soon as `H >= C`
    (the paper's way to fulfil the data-architecture alignment condition; the branch and random gates are ours).

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
        units,
        gates="learned",
        sharpness=10.0,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not (isinstance(units, (int, np.integer)) and units > 0):
            raise ValueError(f"units must be a positive integer. Received: units={units!r}")
        if gates not in _GATES:
            raise ValueError(f"gates must be one of {_GATES}. Received: gates={gates!r}")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be positive. Received: sharpness={sharpness!r}")
        self.units, self.gates, self.sharpness, self.seed = (
            int(units),
            gates,
            float(sharpness),
            seed,
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        m, random = input_shape[-1], self.gates == "random"
        self.kernel = self.add_weight(
            name="kernel",
            shape=(m, self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        gaussian = keras.initializers.RandomNormal(stddev=m**-0.5, seed=self.seed) if random else "zeros"
        self.gate_kernel = self._fixed("gate_kernel", (m, self.units), gaussian)
        self.gate_bias = self._fixed("gate_bias", (self.units,), "zeros")
        self.mean = self._fixed("mean", (m,), "zeros")
        self.scale = self._fixed("scale", (m,), "ones")
        self.frozen = self._fixed("frozen", (), "ones" if random else "zeros")

    def _fixed(self, name, shape, initializer):
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False)

    def call(self, inputs):
        u = (inputs - self.mean) / self.scale
        linear = ops.matmul(u, self.kernel) + self.bias
        gate = ops.matmul(u, self.gate_kernel) + self.gate_bias
        if self.gates == "learned":  # a weight decides, not a Python flag, so that a compiled function follows it
            gate = ops.where(self.frozen > 0.5, gate, linear)
        return linear * ops.sigmoid(ops.multiply(gate, self.sharpness))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    @property
    def gates_frozen(self):
        """True when the layer is linear in its kernel and bias."""
        return bool(_numpy(self.frozen) > 0.5)

    def freeze_gates(self, noise=0.0, seed=None):
        """Fix learned gates where they are, plus Gaussian noise; a second call, or random gates, change nothing.

        Args:
            noise: standard deviation of the noise, relative to that of the gates' parameters.
            seed: integer for the noise.
        """
        if noise < 0:
            raise ValueError(f"noise must not be negative. Received: noise={noise!r}")
        if self.gates_frozen:
            return
        gates = np.concatenate([_numpy(self.kernel), _numpy(self.bias)[None]])
        gates += noise * gates.std() * np.random.default_rng(seed).standard_normal(gates.shape)
        self.gate_kernel.assign(gates[:-1])
        self.gate_bias.assign(gates[-1])
        self.frozen.assign(1.0)

    def adapt(self, features):
        """Standardize by these features and put the threshold of every random gate through one of them.

        Args:
            features: array of shape `(n, m)`, the layer's inputs on the training samples.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or not features.size or not np.isfinite(features).all():
            raise ValueError(
                f"adapt needs finite features of shape (n, m). Received: features of shape {features.shape}"
            )
        if not self.built:
            self.build(features.shape)
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale <= 1e-6 * scale.max()] = 1.0  # a feature that never moves stays at zero, as in Normalization
        self.mean.assign(mean)
        self.scale.assign(scale)
        if self.gates == "random":
            through = np.random.default_rng(self.seed).integers(len(features), size=self.units)
            u = (features[through] - mean) / scale
            self.gate_bias.assign(-np.einsum("hm,mh->h", u, _numpy(self.gate_kernel)))

    def linear_head(self, output_layer):
        """Return the head that this layer and a `Dense` layer after it make, with the gates as they are now.

        Returns:
            A `heads.GatedHead`, and the variables it is linear in, in the order of its shapes.
        """
        bias = (output_layer.bias,) if output_layer.use_bias else ()
        return self._head(output_layer.kernel, output_layer.use_bias), (
            self.kernel,
            self.bias,
            *bias,
        )

    def _head(self, output_kernel, use_bias):
        gates = (self.gate_kernel, self.gate_bias) if self.gates_frozen else (self.kernel, self.bias)
        return heads.GatedHead(
            mean=_numpy(self.mean),
            scale=_numpy(self.scale),
            gate_kernel=_numpy(gates[0]),
            gate_bias=_numpy(gates[1]),
            sharpness=self.sharpness,
            output_kernel=_numpy(output_kernel),
            use_bias=use_bias,
        )

    def get_config(self):
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
class GatedBranch(keras.layers.Layer):
    """`activation(dense(z) + gated(z) V)`: a linear head with gated units beside it, at first exactly that head.

    V is Gaussian and fixed, the kernel of the gated units is zero at the start, and with fixed gates the logits are
    linear in the parameters of `linear_head`.

    Args:
        dense: the `keras.layers.Dense` head, or its configuration; its activation is applied after the sum.
        units: number H of gated units.
        gates: `"random"` or `"learned"`, as in `GatedDense`.
        sharpness: as in `GatedDense`.
        seed: integer for V and the random gates.
    """

    def __init__(self, dense, units, gates="random", sharpness=10.0, seed=None, **kwargs):
        if isinstance(dense, dict):
            dense = keras.saving.deserialize_keras_object(dense)
        super().__init__(**{"dtype": dense.dtype_policy, **kwargs})
        self._config = {"dense": keras.saving.serialize_keras_object(dense)}
        self.activation = dense.activation
        self.dense = keras.layers.Dense.from_config({**dense.get_config(), "activation": "linear"})
        self.gated = GatedDense(
            units,
            gates,
            sharpness,
            kernel_initializer="zeros",
            seed=seed,
            dtype=self.dtype_policy,
            name="gated",
        )
        self._config |= {
            "units": units,
            "gates": gates,
            "sharpness": sharpness,
            "seed": seed,
        }

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.gated.build(input_shape)
        seed = self.gated.seed
        self.output_kernel = self.add_weight(
            name="output_kernel",
            shape=(self.gated.units, self.dense.units),
            initializer=keras.initializers.RandomNormal(
                stddev=self.gated.units**-0.5, seed=None if seed is None else seed + 1
            ),
            trainable=False,
        )

    def call(self, inputs):
        return self.activation(self.dense(inputs) + ops.matmul(self.gated(inputs), self.output_kernel))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.dense.units)

    def adapt(self, features):
        """Adapt the gated units to the training features, as `GatedDense.adapt` does."""
        self.gated.adapt(features)

    def linear_head(self):
        """Return the sum of the branch and the dense head, with the gates as they are now.

        Returns:
            A `heads.SumHead`, and the variables it is linear in, in the order of its shapes.
        """
        dense, bias = self.dense, (self.dense.bias,) if self.dense.use_bias else ()
        gated = self.gated._head(self.output_kernel, use_bias=False)
        head = heads.SumHead([gated, heads.DenseHead(dense.kernel.shape[0], dense.units, dense.use_bias)])
        return head, (self.gated.kernel, self.gated.bias, dense.kernel, *bias)

    def get_config(self):
        return {**super().get_config(), **self._config}


def _numpy(variable):
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
