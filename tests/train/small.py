"""Settings with which a night takes seconds. Equal shapes and steps are compiled once for all files that use them."""

from __future__ import annotations

from dataclasses import replace

from train.config import FitConfig, GateConfig, OpeConfig, PlanConfig, QualityConfig, TrainConfig

SMALL = TrainConfig(
    fit=FitConfig(warm_steps=0, steps=0, samples=64, residual_steps=20),
    quality=QualityConfig(landmarks=64),
    plan=PlanConfig(samples=64, turns=8, contexts_tokens=(0.0, 2000.0)),
    ope=OpeConfig(bootstrap=300, tuning_sessions=40),
)
TINY = replace(
    SMALL,
    plan=PlanConfig(samples=16, turns=4, money_points=12, contexts_tokens=(0.0, 2000.0), starved_penalties=(0.0, 0.3)),
    ope=OpeConfig(bootstrap=100, tuning_sessions=3),
    gate=GateConfig(min_sessions=1, confidence=0.01, min_ess=1.0, min_ess_fraction=0.0, min_gain=-1.0),
)
"""Its gate lets anything pass."""
TAUGHT = replace(TINY, fit=replace(TINY.fit, warm_steps=200, steps=50, samples=32, rows=4, encoder=8, hidden=8))
"""With a network that is taught, of another size than the shipped one."""
