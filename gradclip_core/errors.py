"""The one family of errors. Each says what was asked, what was seen, and what to do.

Every error of this library is raised before any gradient is written.
"""

from __future__ import annotations


def show(value: object) -> str:
    """``repr(value)``, cut where it would bury the sentence around it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class GradClipError(Exception):
    """Base of every error that gradclip-core raises on purpose.

    Parameters
    ----------
    asked : what the caller asked for, e.g. ``"clip_by_global_norm_"`` or an argument's name
    seen : what was found instead
    cure : what to do about it, as a sentence
    """

    ag_pass_through = True
    """Out of a ``tf.function`` it comes as it is: TensorFlow's AutoGraph would put an error of its own in its place."""

    def __init__(self, asked: str, seen: str = "", cure: str = "") -> None:
        # Not by super().__init__, which torch.compile cannot follow. A sentence alone is what frameworks make one anew
        # with, that raise an error of their caller's once more: Paddle's to_static.
        self.asked = asked
        self.seen = seen
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.asked}: {self.seen}. {self.cure}" if self.seen else self.asked

    def __reduce__(self) -> tuple[type[GradClipError], tuple[str, str, str]]:
        # Exceptions pickle by their ``args``, which hold the joined sentence; workers need the parts.
        return type(self), (self.asked, self.seen, self.cure)


class InvalidArgumentError(GradClipError, ValueError):
    """A threshold, an order, a loss scale, a policy or an axis that has no meaning."""


class ContainerError(GradClipError, TypeError):
    """A container whose leaves cannot be found, ordered or put back."""


class UnsupportedArrayError(GradClipError, TypeError):
    """A leaf that is no array, or an array of a dtype or kind that cannot be clipped."""


class UnsafeMemoryError(GradClipError, ValueError):
    """Memory that is missing, overlapping, or not what the array says it is."""


class ReadOnlyError(GradClipError, ValueError):
    """An in-place function was given memory that may not be written."""


class BackendError(GradClipError, RuntimeError):
    """No backend, or not the one that was named, can serve this call."""


def no_memory_for(device: str, shape: tuple[int, ...], error: Exception) -> BackendError:
    """The refusal where a framework has no memory left for a new array."""
    cure = "Free memory on the device, or use the function that works in place, with an underscore"
    return BackendError(f"allocating a new array of shape {shape}", f"{device} is out of memory ({error})", cure)


class GradientUnderflowError(GradClipError, FloatingPointError):
    """``underflow="raise"`` met elements that the factor would make zero. No gradient was touched."""


class NonFiniteGradientError(GradClipError, FloatingPointError):
    """``nonfinite="raise"`` met an infinity or a NaN. No gradient was touched."""
