"""Mixed precision: the loss scale, and the object that clips under it beside an optimizer.

``scaler.py`` is the state machine of a loss scale, ``clipper.py`` the one call of a step,
``torch_amp.py`` what it needs of a ``torch.amp.GradScaler``, ``parameters.py`` where a model's
gradients are found, ``order.py`` and ``watch.py`` what is refused because it comes twice, too early or not at
all, ``statistics.py`` what a training run is summed up in.
"""
