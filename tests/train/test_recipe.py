import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from bench.errors import UserError
from bench.train.recipe import RECIPES, Recipe, label, resolve
from bench.train.schedule import factor


def test_named_recipes_of_the_family():
    review = RECIPES["review"]
    assert (review.optimiser, review.lr, review.momentum, review.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (review.batch, review.epochs, review.passes, review.schedule) == (256, 1000, 1001, "half_reset")
    assert (review.augment, review.select, review.precision, review.loss) == ("dsa", "last", "fp32", "auto")
    assert RECIPES["dsa"] == RECIPES["dm"] == review
    assert RECIPES["dc"].passes == 301
    assert RECIPES["mtt"].lr == "learned"
    idc = RECIPES["idc"]
    assert (idc.batch, idc.epochs, idc.lr, idc.momentum, idc.weight_decay) == (64, 1000, 0.01, 0.9, 5e-4)
    assert (idc.schedule, idc.gamma, idc.augment, idc.cutmix) == ("step", 0.2, "idc", 0.5)
    glad = RECIPES["glad"]
    assert (glad.batch, glad.epochs, glad.lr, glad.momentum, glad.weight_decay) == (256, 1000, 1e-3, 0.9, 5e-4)
    assert (glad.schedule, glad.average, glad.augment) == ("half_warmup", 0.995, "dsa")
    rates = [factor(idc, epoch, 1) for epoch in range(1000)]
    assert rates == [1.0] * 666 + [0.2] * 167 + [0.2**2] * 167


def test_fields_come_from_the_base():
    assert resolve({"base": "dc", "lr": 0.1}) == RECIPES["dc"].model_copy(update={"lr": 0.1})
    assert resolve({"epochs": 100}).augment == "dsa"
    assert resolve({"lr": 0.5}, base=RECIPES["dc"]).epochs == 300


def test_dc_trains_longer_where_it_augments():
    on_mnist, elsewhere = RECIPES["dc"].on("dc:crop_scale_rotate"), RECIPES["dc"].on("none")
    assert (on_mnist.passes, elsewhere.passes) == (1001, 301)
    assert (on_mnist.augment, elsewhere.augment) == ("dc:crop_scale_rotate", "none")
    assert resolve({"base": "dc", "epochs": 5}).on("dc:crop_scale_rotate").passes == 6


def test_one_length_replaces_the_other():
    assert resolve({"base": "frepo", "epochs": 3}).steps is None
    assert resolve({"base": "dd", "epochs": 3}).use_steps is False
    assert resolve({"base": "review", "steps": 3, "schedule": "constant"}).epochs is None


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_fields_survive_json(name):
    plain = json.loads(json.dumps(RECIPES[name].model_dump(mode="json")))
    assert resolve(plain) == RECIPES[name]


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("reveiw", "did you mean 'review'"),
        ({"base": "nothing"}, "unknown recipe 'nothing'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"lr": -1.0}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 3, "steps": 3}, "exactly one"),
        ({"steps": 3}, "half_reset needs epochs"),
        ({"base": "glad", "steps": 3}, "half_warmup and the average of weights need epochs"),
        ({"steps": 3, "schedule": "constant", "epochs_augmented": 3}, "epochs_augmented needs epochs"),
        ({"schedule": "step", "milestones": [0.9, 0.1]}, "milestones"),
        ({"optimiser": "lbfgs"}, "optimiser"),
    ],
)
def test_bad_recipes_are_user_errors_that_name_the_field(recipe, part):
    with pytest.raises(UserError, match=part):
        resolve(recipe)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        RECIPES["review"].lr = 1.0


def test_labels():
    assert label(RECIPES["dsa"]) == "review"
    assert label(RECIPES["dc"]) == "dc"
    assert label(resolve({"epochs": 100, "batch": 64})) == "review(epochs=100, batch=64)"
    assert label(resolve({"base": "frepo", "steps": 1000})) == "frepo(steps=1000)"
    assert label(resolve({"base": "dc", "epochs": 5})) == "dc(epochs=5)"
    assert label(resolve({"steps": 7, "schedule": "step", "milestones": [0.25, 0.75]})) == (
        "review(steps=7, schedule=step, milestones=0.25/0.75)"
    )


def test_labels_tell_recipes_apart():
    recipes = [
        Recipe(epochs=300),
        Recipe(epochs=300, augment="dc"),
        Recipe(epochs=300, select="best-test"),
        Recipe(epochs=301),
        *RECIPES.values(),
    ]
    assert len({label(r) for r in recipes}) == len(set(recipes))


def test_recipes_and_evaluators_import_no_torch():
    code = (
        "import sys, evaluators.accuracy, evaluators.cross_arch, evaluators.cost, bench.train.recipe, "
        "bench.train.networks, bench.stats; print({'torch', 'pandas', 'scipy', 'matplotlib'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
