"""What is to be read from the trees of ``boards``."""

from __future__ import annotations

from tests.device.boards import PMIC_RAILS

_NX_W = 0.870 * 5
_ORIN = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
_XAVIER = ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]
_NX = ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]

TOTALS: list[tuple[str, str, list[str], float, str]] = [
    ("pi5", "pi5-pmic", [rail[0] for rail in PMIC_RAILS], 2.4259, "sum of the PMIC's rails"),
    ("pi5_ina219_hat", "pi5-pmic", [rail[0] for rail in PMIC_RAILS], 2.4259, "sum of the PMIC's rails"),
    ("pi4_ina219_hat", "ina2xx", ["ina219 at 1-0040"], 3.12, "in the board's supply line"),
    ("jetson_nano", "ina3221", ["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], 2.2, "Nano: the module's 5 V input rail"),
    ("xavier_nx_jetpack4", "ina3221", _NX, _NX_W, "Xavier NX: the module's input rail"),
    ("xavier_nx_jetpack5", "ina3221", _NX, _NX_W, "Xavier NX: the module's input rail"),
    ("agx_xavier_jetpack4", "ina3221", _XAVIER, 19 * 0.155 + 2.1, "AGX Xavier: sum of the module's rails"),
    ("agx_xavier_jetpack5", "ina3221", _XAVIER, 19 * 0.155 + 2.1, "AGX Xavier: sum of the module's rails"),
    ("orin_nano", "ina3221", _NX, _NX_W, "Orin Nano/NX: the module's input rail"),
    ("agx_orin", "ina3221", _ORIN, 20 * 0.2 + 5 * 0.64, "VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0"),
    ("thor", "ina238", ["VIN"], 32.4, "Thor: the input rail"),
    ("laptop", "battery", ["BAT0"], 9.6, "the whole machine, its screen too"),
    ("laptop_power", "battery", ["BAT1"], 7.25, "the whole machine, its screen too"),
]
"""Board, source, rails, W in total, what the total covers."""
