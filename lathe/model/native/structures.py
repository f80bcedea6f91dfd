"""What block.cpp is told, field by field as it declares them: a layer's parts, and where a pass's tokens sit."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_int64, c_void_p
from typing import Any

N, P, D = c_int64, c_void_p, c_double


def _structure(name: str, **fields: Any) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": [*fields.items()]})


Matrix: Any = _structure("Matrix", weight=P, bias=P, rows=N, kind=N, a=P, b=P, others=P, rank=N)
Norm: Any = _structure("Norm", kind=N, weight=P, bias=P, eps=D, offset=D)
Look: Any = _structure("Look", heads=N, kv_heads=N, channels=N, window=N, chunk=N, scale=D, softcap=D)
Mixer: Any = _structure(
    "Mixer",
    there=N,
    look=Look,
    rope_channels=N,
    interleaved=N,
    q=Matrix,
    k=Matrix,
    v=Matrix,
    o=Matrix,
    q_norm=Norm,
    k_norm=Norm,
    normed=N,
    own=N,
    clip=D,
    sinks=P,
)
Mlp: Any = _structure("Mlp", there=N, act=N, width=N, gate=Matrix, up=Matrix, down=Matrix)
Block: Any = _structure(
    "Block",
    width=N,
    parallel=N,
    residual=D,
    before_mixer=Norm,
    after_mixer=Norm,
    before_mlp=Norm,
    after_mlp=Norm,
    mixer=Mixer,
    mlp=Mlp,
)
Pass: Any = _structure("Pass", tokens=N, threads=N, write=P, starts=P, tables=P, lengths=P)
Steps = ctypes.c_int64 * 4
