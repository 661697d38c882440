"""Export a model for your own task, ask it, and write it back as a Hugging Face checkpoint.

Run: python examples/export_and_predict.py minilm bundle "I want my money back"
"""

import sys

import fedspzo

#: An encoder chooses the label whose text is most like the request.
TASK = fedspzo.Task(
    name="support",
    form="similarity",
    template="{text}",
    labels=(fedspzo.Label("refund", "give my money back"), fedspzo.Label("delivery", "where is my parcel")),
)


def main(model: str, out: str, text: str, *, lengths: tuple[int, ...] = (32,)) -> fedspzo.Prediction:
    """What the model answers before it was trained on anything."""
    bundle = fedspzo.export_model(model, TASK, out, fedspzo.Target(lengths=lengths), progress=print)
    found = fedspzo.predict(bundle, text)
    for label, share in found.probabilities.items():
        print(f"{share:6.1%}  {label}")
    fedspzo.materialize_model(bundle, f"{out}-checkpoint")
    print(f"{out}-checkpoint can be loaded by transformers")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:4])
