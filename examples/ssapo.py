"""SSAPO, Algorithm 1 of Stackelberg Game Preference Optimization (arXiv 2502.18099), as one program.

    python examples/ssapo.py params/smollm2-135m.yaml --out ssapo-policy

A few labels, then rounds in which the policy ranks its own answers and trains against the worst case near that ranking.
The tangents, groups, judges, accumulation, flipped labels and calibrated radius that params may ask for are left to the
notebooks.
"""

import argparse
from pathlib import Path

from sgpo_lib import annotation, data, follower, leader
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, embed

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("params_file", nargs="?", default="params/smollm2-135m.yaml")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("ssapo-policy"), help="folder for the trained policy")
asked = parser.parse_args()
params, seed = load_params(asked.params_file, method="ssapo"), asked.seed
adversary = params.follower.model_dump()
support = follower.make_support(adversary["support"])  # the window [a, b] of the margins

# The SFT model is pi_ref of every implicit reward; the prompts part into the seed and a pool for each round.
policy = Policy.load(params.model)
longest = params.generation.max_prompt_length
prompts = data.prepare(params.data, params.root, seed, embed=lambda some: embed(policy, some, longest))

# Seed: DPO on the few labelled pairs gives pi_0.
pairs = annotation.labelled(policy, prompts.seed, params, seed)
rows = leader.with_references(pairs, "previous").assign(loss_weight=data.loss_weights(pairs))
log = leader.train(policy, rows, params.seed_dpo, params.beta, seed)
print(f"seed DPO: {len(rows)} labelled pairs, loss {log['loss'].iloc[0]:.4f} -> {log['loss'].iloc[-1]:.4f}")

margins = None
for t, pool in enumerate(prompts.rounds, start=1):
    # Self-annotation: pi_{t-1} answers twice, and R = beta log(pi_{t-1} / pi_ref) says which answer is the better one.
    responses = annotation.respond(policy, pool, params.generation, seed + t)
    responses = annotation.with_implicit_rewards(policy, responses, params.beta)
    if params.gold is not None:  # only looks on, to tell how many self-labels are right
        responses["gold"] = GoldJudge(**params.gold.model_dump()).score(responses["response"])
    pairs = annotation.with_margins(annotation.preferred(annotation.rank(responses, by="implicit_reward")))

    # Follower: the worst distribution of margins within W1 distance epsilon of these, eq. (5).
    before, margins = margins, pairs["margin"]
    epsilon = follower.resolve_radius(adversary["radius"], margins, margins_before=before)
    worst = follower.worst_case(margins, epsilon, support)

    # Leader: theta moves on that distribution, eq. (4), from pi_{t-1} to pi_t.
    rows = leader.training_rows(pairs, worst.per_pair(), params.leader)
    log = leader.train(policy, rows, params.leader, params.beta, seed + t)

    right = annotation.audit(pairs).get("agreement", float("nan"))
    losses = f"loss {log['loss'].iloc[0]:.4f} -> {log['loss'].iloc[-1]:.4f}"
    print(f"round {t}: {right:.0%} of {len(pairs)} self-labels right, price {worst.price:.4f}, {losses}")

policy.save(asked.out)
print("saved", asked.out)
