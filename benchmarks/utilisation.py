"""What share of a device's arithmetic a dump used: floating-point operations of the model's matrix products against the
device's peak.

The operations are counted from the weights, the tokens and the scored places that were computed: what padding adds is
not counted, and what sharing saves is not either. The peak is the data sheet's for the GPUs named here (dense, bf16
with fp32 sums), else a matrix product's own, measured.
"""

import time

import torch

_DATA_SHEETS = {  # part of the name that torch gives → TFLOP/s; the first that fits
    "B200": 2250.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
_SIZE = {"cuda": 8192, "cpu": 1024}
_TIMES = 5


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second at best, and where that is known from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, tera in _DATA_SHEETS.items():
            if part in name:
                return tera * 1e12, f"data sheet of {part}"
    measured = measured_flops(device, dtype)
    return measured, f"a matrix product of {_SIZE.get(device.type, 1024)} rows on this {device.type}, measured"


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of a few."""
    size = _SIZE.get(device.type, 1024)
    x, y = (torch.ones((size, size), device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(_TIMES):
        started = time.perf_counter()
        (x @ y)[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
