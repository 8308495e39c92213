"""Recipes: plain, complete and checked, so that a misspelt key cannot train something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdsr.errors import RecipeError
from vdsr.training.optimiser import learning_rate
from vdsr.training.recipe import FOLDER, Recipe, names, read_recipe


def test_the_recipes_that_come_with_the_package_can_be_read() -> None:
    assert names() == ["best", "paper"]
    assert all(read_recipe(name).name == name for name in names())


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    paper = read_recipe("paper")

    assert (paper.patch, paper.batch, paper.steps, paper.scales) == (41, 64, 9960, (2, 3, 4))
    assert (paper.optimiser, paper.momentum, paper.weight_decay, paper.loss) == ("sgd", 0.9, 1e-4, "l2")
    assert paper.clip == "adjustable"
    rates = [learning_rate(paper, step) for step in (0, 2489, 2490, 4980, 9959)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])


def test_a_linear_schedule_rises_stays_level_and_ends_at_nothing() -> None:
    recipe = read_recipe("best", {"steps": "100", "warmup": "10", "decay_steps": "50", "learning_rate": "1"})

    assert [learning_rate(recipe, step) for step in (0, 9, 30, 50, 75, 99)] == [0.1, 1.0, 1.0, 1.0, 0.5, 0.02]


def test_a_short_run_decays_all_the_same() -> None:
    recipe = read_recipe("best", {"steps": "10", "warmup": "4", "decay_steps": "1000", "learning_rate": "1"})

    assert [learning_rate(recipe, step) for step in (0, 3, 5, 9)] == [0.25, 0.7, 0.5, 0.1]


def test_a_cosine_schedule_ends_at_a_hundredth() -> None:
    recipe = read_recipe("best", {"schedule": "cosine", "steps": "101", "warmup": "1", "learning_rate": "1"})

    assert learning_rate(recipe, 1) == 1.0
    assert learning_rate(recipe, 51) == pytest.approx(0.505)
    assert learning_rate(recipe, 101) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "5"}, "no key 'step'; did you mean 'steps'"),
        ({"colour": "red"}, "no key 'colour'; there are name, steps"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"steps": "2.5"}, "steps is 2.5; it must be a whole number"),
        ({"steps": "true"}, "steps is True; it must be a whole number"),
        ({"steps": "0"}, "steps is 0; it must be at least 1"),
        ({"learning_rate": "-1"}, "learning_rate is -1.0; it must be above 0"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be above 0"),
        ({"optimiser": "adm"}, "optimiser is 'adm'; it must be one of sgd, adam, muon"),
        ({"scales": "[2, 9]"}, r"scales is \(2, 9\); it must be factors above 1, up to 8"),
        ({"scales": "[1, 2]"}, "factors above 1"),
        ({"scales": "[2, 2]"}, "without repetition"),
        ({"scales": "2"}, "scales is 2; it must be a list of numbers"),
        ({"ema": "1"}, "ema is 1.0; it must be from 0 to below 1"),
        ({"patch": "4"}, "patch is 4; it must be from 8 to 1024 pixels"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("best", change)


def test_a_recipe_of_one_s_own_is_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text((FOLDER / "paper.toml").read_text().replace("steps = 9960", "steps = 7"))

    recipe = read_recipe(str(mine), {"seed": "3"})

    assert (recipe.name, recipe.steps, recipe.seed, recipe.patch) == ("mine.toml", 7, 3, 41)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no recipe"), ("steps = ", "not a recipe in TOML"), ("steps = 5", "lacks batch, patch")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_text(content)

    with pytest.raises(RecipeError, match=message):
        read_recipe(str(path))


def test_a_scale_may_be_a_fraction_and_a_whole_one_is_written_as_such() -> None:
    recipe = read_recipe("best", {"scales": "[1.5, 2.0, 3]"})

    assert recipe.to_dict()["scales"] == [1.5, 2, 3]
    assert [type(scale) for scale in recipe.scales] == [float, int, int]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
