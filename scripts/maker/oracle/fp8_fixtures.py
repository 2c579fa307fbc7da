#!/usr/bin/env python3
"""What PyTorch says that 8-bit floats are.

Owns spec/fixtures/fp8/. Source: torch.float8_e4m3fn. Nothing here knows Pyramid.

    e4m3.bin   the 256 values as f32, in the order of their bytes; then 3000 values as f32, which no rounding takes beyond 448;
               then the bytes that those become

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/fp8_fixtures.py
"""
import os

import torch

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "fp8")


def main():
    torch.manual_seed(8)
    fp8 = torch.float8_e4m3fn
    values = torch.arange(256, dtype=torch.uint8).view(fp8).float()
    finite = values[values.isfinite()].unique()
    middles = (finite[1:] + finite[:-1]) / 2  # ties, exact in f32
    near = torch.cat([torch.nextafter(middles, torch.tensor(s)) for s in (-1e9, 1e9)])
    edges = torch.tensor([464.0, -464.0, 2.0**-10, -(2.0**-10), 2.0**-11, 1e-30, -1e-45, 0.0, -0.0])
    some = torch.cat([finite, middles, near, edges])
    random = torch.randn(3000 - len(some)) * 2.0 ** torch.randint(-11, 8, (3000 - len(some),))
    chosen = torch.cat([some, random.clamp(-464, 464)])
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "e4m3.bin"), "wb") as out:
        out.write(values.numpy().tobytes() + chosen.numpy().tobytes() + chosen.to(fp8).view(torch.uint8).numpy().tobytes())


main()
