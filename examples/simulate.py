"""Fine-tune a model with virtual devices, in ten lines.

Run: python examples/simulate.py runs/demo/bundle runs/demo/data/device-1.jsonl runs/demo/data/held-out.jsonl
(``make demo`` makes the bundle and the files; any bundle and labelled examples will do.)
"""

import sys

import fedspzo


def main(bundle: str, data: str, held_out: str, *, rounds: int = 20) -> fedspzo.Simulation:
    """The loss and the accuracy before the first round and after the last."""
    job = fedspzo.Job(rounds=rounds)
    run = fedspzo.simulate(bundle, data, job, devices=8, held_out=held_out)
    for number, found in run.evaluations.items():
        print(f"round {number}: loss {found.loss:.3f}, accuracy {found.scores['accuracy']:.1%}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:4])
