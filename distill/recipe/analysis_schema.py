"""The keys of `analysis`: how trained networks are analysed."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from distill.recipe.strict import Strict


def _text_from_number(value: Any) -> Any:
    """Return the text of a whole number, because YAML reads the class name 7 as a number."""
    # `type` and not `isinstance`: True is an int, but no class name.
    return str(value) if type(value) is int else value


ClassNames = list[Annotated[str, BeforeValidator(_text_from_number)]]


class Analysis(Strict):
    """How trained networks are analysed. No key changes a trained weight."""

    budget: float = Field(
        0.25,
        ge=0,
        description="Cost of the analysis as a share of the cost of training, both counted in "
        "forward passes. The defaults of `examples`, `num_views` and `num_attacked` are lowered "
        "until the analysis fits; a value that the recipe states is kept. The report says what "
        "was lowered.",
    )
    examples: int = Field(
        100,
        ge=0,
        description="Images per class whose penultimate features are analysed (at most 10,000 in "
        "total); 0 skips this analysis. The default is lowered to fit `budget`.",
    )
    classes: ClassNames | None = Field(
        None,
        min_length=3,
        max_length=3,
        description="Names of the three classes in the feature plots. By default there are two "
        "plots: the three most confused classes, and the most confused pair with a class far from "
        "it.",
    )
    num_attacked: int = Field(
        500,
        ge=0,
        description="Number of test images that are attacked; 0 skips the attacks. The default is "
        "lowered to fit `budget`.",
    )
    eps_linf: float = Field(
        8 / 255,
        gt=0,
        le=1,
        description="Largest change of a pixel by an L∞ attack; pixels are in [0, 1].",
    )
    eps_l2: float = Field(
        0.5,
        gt=0,
        description="Largest change of a whole image by an L2 attack (Euclidean norm); pixels are "
        "in [0, 1].",
    )
    steps: int = Field(20, ge=1, description="Steps of projected gradient ascent in an attack.")
    num_views: int = Field(
        40,
        ge=0,
        description="Views per image that estimate its mean output, for the mutual information "
        "between an image and the network's output on its views. The estimate is about "
        "1 / (2 num_views) nats too low. 0 skips this analysis. The default is lowered to fit "
        "`budget`.",
    )
    pair: ClassNames | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Names of the two classes in the analysis of mutual information. By default "
        "one of the most confused classes, and one far from it.",
    )
