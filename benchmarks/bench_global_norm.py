"""Clip by the global norm on the CPU: the gradients of real models, where it is memory that counts."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Settings
from benchmarks.shapes import Shapes, elements, gpt2, llama, resnet50
from gradclip_core.cli.bench_timing import Case
from gradclip_core.cli.bench_works import Frameworks, by_global_norm

UNCLIPPED, CLIPPED = "global norm, unclipped", "global norm, clipped"


def cases(settings: Settings) -> list[Case]:
    """GPT-2 in three dtypes, a Llama-like 1B, ResNet-50, and one large array."""
    quick, peers, torch = settings.quick, settings.peers, settings.torch
    small = gpt2(width=64) if quick else gpt2()
    made = []
    for clips in (False, True):
        made.append(_case(settings, "GPT-2 124M", small, "float32", peers, clips, numpy_alone=not clips))
    for dtype in ("bfloat16", "float16") if torch.torch is not None else ("float16",):
        made += [_case(settings, "GPT-2 124M", small, dtype, torch, clips) for clips in (False, True)]
    wide = llama(width=128, hidden=512, keys=32) if quick else llama()
    if torch.torch is not None and settings.fits(2 * 2 * elements(wide)):
        made += [_case(settings, "Llama-like 1B", wide, "bfloat16", torch, clips) for clips in (False, True)]
    images = resnet50(width=16) if quick else resnet50()
    made += [_case(settings, "ResNet-50", images, "float32", peers, clips) for clips in (False, True)]
    one: Shapes = [(10**6 if quick else 10**8,)]
    made += [_case(settings, "one array of 10^8", one, "float32", torch, clips) for clips in (False, True)]
    return made


def _case(
    settings: Settings, data: str, shapes: Shapes, dtype: str, peers: Frameworks, clips: bool, numpy_alone: bool = False
) -> Case:
    work = CLIPPED if clips else UNCLIPPED
    prepare = partial(by_global_norm, shapes, dtype, settings.threads, peers, clips=clips, numpy_alone=numpy_alone)
    return Case("global_norm", work, f"{data}, {dtype}", prepare, settings.rounds)
