"""What is asked and answered, as JSON; the OpenAPI page is made of this."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Number = float
Text = Annotated[str, Field(min_length=1)]


class Asked(BaseModel):
    """A request: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid")


class Answered(BaseModel):
    """An answer; a class's name is called ``class``."""

    model_config = ConfigDict(populate_by_name=True)


class Problem(BaseModel):
    """Why there is no answer, and what to do."""

    detail: str


class Vote(Answered):
    """What one member says: a particle, a draw of it, or a readout."""

    member: str
    class_: str = Field(alias="class")
    probability: Number


class ClassAnswer(Answered):
    """What is said of one example; entropies in nats."""

    class_: str = Field(alias="class", description="The most probable class.")
    probability: Number = Field(description="Its probability.")
    entropy: Number = Field(description="Total uncertainty.")
    expected_entropy: Number = Field(description="What the members are unsure of by themselves.")
    mutual_information: Number = Field(description="What the members dispute.")
    novelty: Number | None = Field(None, description="How unlike the training data; mixtures only.")
    refer: bool | None = Field(None, description="Show it to a person; where there is a threshold.")
    probabilities: dict[str, Number]
    votes: list[Vote]


class NumberVote(Answered):
    """What one particle says of a number."""

    member: str
    mean: Number
    std: Number


class NumberAnswer(Answered):
    """What is said of one number, in its own units; entropies in nats, of a density."""

    mean: Number
    std: Number
    low_90: Number = Field(description="Below it are 5% of the probability.")
    high_90: Number = Field(description="Above it are 5% of the probability.")
    aleatoric_std: Number = Field(description="What every particle sees.")
    epistemic_std: Number = Field(description="What the particles dispute.")
    entropy: Number
    mutual_information: Number
    refer: bool | None = None
    votes: list[NumberVote]


class Predictions(Answered):
    """An answer to each example, in their order."""

    predictions: list[ClassAnswer]


class Numbers(Answered):
    """A number for each example, in their order."""

    predictions: list[NumberAnswer]


class Token(Answered):
    """One token of an answer, in nats."""

    token: str
    log_prob: Number
    entropy: Number
    mutual_information: Number


class Written(Answered):
    """An answer of a language model; entropy and mutual information are means over its tokens."""

    answer: str
    log_prob: Number
    mixture_log_prob: Number = Field(description="Of the whole text, under the mixture.")
    particle_log_probs: list[Number]
    entropy: Number
    mutual_information: Number
    refer: bool | None = None
    tokens: list[Token]


class Answers(Answered):
    """An answer to each prompt, in their order."""

    answers: list[Written]


class About(Answered):
    """What is served."""

    kind: str = Field(description="images, text, regression, multiple-choice or causal-lm.")
    network: str
    posterior: str
    particles: int
    classes: list[str]
    pair: bool = Field(False, description="Whether each text has a second one.")
    options: int | None = Field(None, description="How many options a question has.")
    chat: bool = Field(False, description="Whether prompts may be the messages of a chat.")
    threshold: Number | None = Field(None, description="Entropy from which on to ask a person.")
    promise: str = Field("", description="What that threshold promises.")
    version: str
    limits: dict[str, Any]


class Health(Answered):
    """Whether it works."""

    status: str
