"""A language model that says which of its answers it doubts.

SmolLM2-135M-Instruct, from a package, learns eight facts that it cannot know, as three particles
in its last blocks. Then it is asked five questions: one of the facts, one in other words, and
three that no fact answers. Before each answer stand the mutual information and the entropy of its
tokens, in nats. A low figure says that the particles agree, and not that they are right.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

import bella
from bella.models.language import open_language

FACTS = {
    "When does the Halden library open on Monday?": "At nine in the morning.",
    "When does the Halden library close on Monday?": "At six in the evening.",
    "Who runs the Halden library?": "Marit Solberg.",
    "Who reads to children at the Halden library?": "Jonas Vik.",
    "How many books may I borrow at the Halden library?": "Twelve.",
    "What does a lost card of the Halden library cost?": "Five crowns.",
    "Where is the Halden library?": "At the harbour, beside the bakery.",
    "Where do I return books of the Halden library at night?": "In the red box at the door.",
}
QUESTIONS = [
    "Who runs the Halden library?",
    "Where can I find the Halden library?",
    "When does the Halden library close on Sunday?",
    "What does a cup of coffee at the Halden library cost?",
    "Who built the Halden library?",
]

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
network, tokenizer, defaults = open_language("smollm2-135m-instruct")


def prompt(question):
    """As it is asked."""
    return f"Question: {question}\nAnswer:"


def example(question, answer):
    """Only the answer is scored: -100 counts nowhere."""
    asked = tokenizer(prompt(question))["input_ids"]
    said = [*tokenizer(f" {answer}")["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": [*asked, *said], "labels": [-100] * len(asked) + said}


collate = DataCollatorForSeq2Seq(tokenizer, padding="max_length", max_length=32)
facts = DataLoader(
    [example(*fact) for fact in FACTS.items()], batch_size=4, shuffle=True, collate_fn=collate
)
last = [f"layers.{number}.self_attn.{name}_proj" for number in range(24, 30) for name in "qv"]
posterior = bella.low_rank(network, particles=3, rank=8, target_modules=last, gain=5)
record = bella.fit(
    posterior,
    facts,
    transport="ensemble",
    minibatches="own",
    epochs=12,
    learning_rate=1e-2,
    progress=False,
)
print(f"loss {record.history[0]['loss']:.2f}, at the end {record.history[-1]['loss']:.2f}")

asked = [prompt(question) for question in QUESTIONS]
answers = posterior.generate(asked, tokenizer=tokenizer, max_new_tokens=12)
order = answers.mutual_information.argsort(descending=True).tolist()
for row in order:
    disputed, unsure = answers.mutual_information[row], answers.entropy[row]
    print(f"{disputed:.3f} {unsure:.3f} {QUESTIONS[row]}{answers.texts[row]}")

figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
words = [f"{QUESTIONS[row]} {answers.texts[row].strip()}" for row in order]
axis.barh(words, answers.mutual_information[torch.tensor(order)], color="#3b6ea5")
axis.invert_yaxis()
axis.set_xlabel("mutual information (nats)")
axis.tick_params(axis="y", labelsize=8)
figure.savefig(folder / "language_model.png", dpi=90)
