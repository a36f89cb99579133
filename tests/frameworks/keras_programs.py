"""What a user of Keras 3 writes, for each of its backends: programs of their own: importing Keras chooses one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import os
import numpy as np, keras, gradclip_core as gc

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 4)).astype("float32")
y = (x @ rng.standard_normal((4, 1)) * 100).astype("float32")

def trained(base, clip, **how):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = base(inputs, keras.layers.Dense(1)(keras.layers.Dense(8, activation="tanh")(inputs)))
    model.clip = clip
    optimizer = keras.optimizers.Adam(0.05) if clip else keras.optimizers.Adam(0.05, global_clipnorm=1.0)
    model.compile(optimizer=optimizer, loss="mse", **how)
    model.fit(x, y, batch_size=24, epochs=3, shuffle=False, verbose=0)
    return model

def look(base, **how):
    ours, theirs = trained(base, True, **how), trained(base, False, **how)
    for a, b in zip(ours.get_weights(), theirs.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    before = ours.get_weights()
    ours.fit(x * np.inf, y, batch_size=64, epochs=1, verbose=0)
    assert all((a == b).all() for a, b in zip(before, ours.get_weights())), "a step that is skipped changes nothing"
    ours.fit(x, y, batch_size=64, epochs=1, verbose=0)
    assert not all((a == b).all() for a, b in zip(before, ours.get_weights()))
"""

TENSORFLOW = """
import tensorflow as tf

class Clipped(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        variables = self.trainable_variables
        grads = tape.gradient(loss, [v.value for v in variables])
        if not self.clip:
            self.optimizer.apply(grads, variables)
            return {"loss": loss}
        grads, info = gc.clip(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        tf.cond(info.skipped, lambda: None, lambda: self.optimizer.apply(grads, variables))
        return {"loss": loss, "norm": info.norm}

look(Clipped, **HOW)
"""

JAX = """
import jax

class Clipped(keras.Model):
    def train_step(self, state, data):
        trainable, rest, optimizer, metrics = state
        x, y = data

        def loss_of(trainable):
            y_pred, new = self.stateless_call(trainable, rest, x, training=True)
            return self.compute_loss(x=x, y=y, y_pred=y_pred), new

        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        if not self.clip:
            trainable, optimizer = self.optimizer.stateless_apply(optimizer, grads, trainable)
            return {"loss": loss}, (trainable, new, optimizer, metrics)
        grads, info = gc.clip(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        made = self.optimizer.stateless_apply(optimizer, grads, trainable)
        kept = jax.tree.map(lambda a, b: jax.numpy.where(info.skipped, a, b), (trainable, optimizer), tuple(made))
        return {"loss": loss}, (kept[0], new, kept[1], metrics)

look(Clipped, **HOW)
"""

TORCH = """
import torch

class Clipped(keras.Model):
    def train_step(self, data):
        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        loss.backward()
        variables = list(self.trainable_weights)
        grads = [v.value.grad for v in variables]
        if self.clip and gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip").skipped:
            return {"loss": loss}
        with torch.no_grad():
            self.optimizer.apply(grads, variables)
        return {"loss": loss}

look(Clipped, **HOW)
"""


EMBEDDING = """
import tensorflow as tf, numpy as np, keras, gradclip_core as gc

rng = np.random.default_rng(0)
words, y = rng.integers(0, 20, (50, 6)), rng.standard_normal((50, 1)).astype("float32") * 50

class Clipped(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        grads = tape.gradient(loss, self.trainable_weights)
        assert isinstance(grads[0], tf.IndexedSlices)
        grads = [tf.convert_to_tensor(g) for g in grads] if self.dense else grads
        grads, info = gc.clip(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        self.optimizer.apply(grads, self.trainable_weights)
        return {"loss": loss}

def trained(dense):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    flat = keras.layers.Flatten()(keras.layers.Embedding(20, 4)(inputs))
    model = Clipped(inputs, keras.layers.Dense(1)(flat))
    model.dense = dense
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", jit_compile=True)
    model.fit(words, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()

for a, b in zip(trained(False), trained(True)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""


VARIABLES = """
import keras, numpy as np, gradclip_core as gc
variable = keras.Variable(np.array([3.0, 4.0], "float32"))
clipped, info = gc.clip_by_norm([variable], 1.0)
assert info.norm == 5.0, info
assert type(clipped[0]).__module__ != "keras"
same, _ = gc.clip_by_norm([np.array([3.0, 4.0], "float32")], 1.0, backend="numpy")
assert (keras.ops.convert_to_numpy(clipped[0]) == same[0]).all()
grad = keras.ops.convert_to_tensor(np.array([30.0, 40.0], "float32"))
made, info = gc.adaptive_clip([grad], [variable], 0.1, axis=None)
assert abs(info.clipped_norm - 0.5) < 1e-6
try:
    gc.clip_by_global_norm([(grad, variable)], 1.0)  # what an optimizer's apply_gradients takes
except gc.InvalidArgumentError as error:
    assert "trainable variable among gradients" in str(error), error
else:
    raise AssertionError
if keras.config.backend() != "torch":
    try:
        gc.clip_by_norm_([variable], 1.0)
    except gc.ReadOnlyError as error:
        assert "v.assign(x). Use clip_by_norm, which returns new arrays" in str(error), error
    else:
        raise AssertionError
"""


def in_a_process(backend: str, code: str) -> None:
    path = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]),
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
