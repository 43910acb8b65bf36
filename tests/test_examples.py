"""The programs in examples/ run as they stand and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, sequence_log_probs

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_whole_algorithm_as_one_program_trains_and_saves_a_policy(tiny_params_file, tmp_path):
    out = tmp_path / "policy"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "ssapo.py", tiny_params_file, "--out", out],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"(?m)^seed DPO: 8 labelled pairs, loss 0\.69\d+ -> ", done.stdout)
    told = re.findall(r"(?m)^round (\d): (\d+)% of \d self-labels right, price (0\.\d+), loss 0\.\d+ -> ", done.stdout)
    assert [t for t, _, _ in told] == ["1", "2"]
    assert all(int(right) <= 100 and 0 < float(price) < 1 for _, right, price in told)  # the loss is 1-Lipschitz

    policy = Policy.load(load_params(tiny_params_file).model, out)
    ids = policy.encode_prompts([[{"role": "user", "content": "Hello?"}]]), [[5, 6, 7]]
    assert abs(sequence_log_probs(policy, *ids) - sequence_log_probs(policy, *ids, reference=True)) > 1e-3
    assert not (tmp_path / "runs").exists()
