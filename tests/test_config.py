"""Configuration: every shipped file loads, and whatever is wrong is named with file, key and remedy."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from vit24h import paths
from vit24h.config import load_config, read_config
from vit24h.errors import UserError

ARMS = sorted(str(p.relative_to(paths.configs()).with_suffix("")) for p in (paths.configs() / "paper").rglob("*.yaml"))
PROFILES = sorted(p.stem for p in (paths.configs() / "profiles").glob("*.yaml"))


def error(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The ablations' sizes are ImageNet's: 128 px is more than mini's and quick's images have.
CASES = [
    (arm, profile)
    for arm, profile in itertools.product(ARMS, PROFILES)
    if not ("ablations" in arm and profile in {"mini", "quick"})
]


@pytest.mark.parametrize(("arm", "profile"), CASES)
def test_every_shipped_arm_loads_under_the_profiles_made_for_it(arm, profile):
    ablation = "ablations" in arm
    if profile == "paper-epochs" and ablation and not arm.endswith("128_5_16"):
        # no number of epochs is published for these, and none is made up
        assert "exactly one of hours, epochs, steps; found none" in error(arm, profile=profile)
    else:
        assert load_config(arm, profile=profile).profile == profile


def test_the_arms_are_the_papers():
    baseline, locality, curriculum, combined, localvit = (
        load_config(f"paper/{arm}", profile="full")
        for arm in ("baseline", "locality", "curriculum", "combined", "localvit")
    )
    assert [c.model.feed_forward for c in (baseline, locality, curriculum, combined, localvit)] == [
        "mlp",
        "locality",
        "mlp",
        "locality",
        "localvit",
    ]
    for config in (curriculum, combined):
        schedule = config.curriculum
        assert (schedule.initial_size, schedule.epochs_per_stage, schedule.size_step) == (32, 5, 32)
    for config in (baseline, locality, localvit):
        assert config.curriculum.initial_size is None
    assert localvit.model.num_heads == 8
    assert baseline.budget.hours == 24
    # what makes the comparison fair: nothing else differs
    assert baseline.optimizer == locality.optimizer == curriculum.optimizer == combined.optimizer == localvit.optimizer
    assert baseline.augmentation == combined.augmentation == localvit.augmentation
    assert baseline.data == combined.data == localvit.data


@pytest.mark.parametrize(
    ("arm", "epochs"), [("baseline", 18), ("locality", 15), ("curriculum", 30), ("combined", 30), ("localvit", 6)]
)
def test_paper_epochs_stops_where_the_authors_curves_end(arm, epochs):
    assert load_config(f"paper/{arm}", profile="paper-epochs").budget.epochs == epochs


def test_a_resolved_configuration_reads_back_the_same(tmp_path):
    config = load_config("paper/combined", profile="quick", overrides=["seed=3", "optimizer.betas=[0.9, 0.99]"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(tmp_path / "config.yaml") == config


def test_the_layers_are_laid_base_row_profile_override(tmp_path):
    (tmp_path / "profile.yaml").write_text(
        "seed: 5\nmodel: {depth: 3}\nby_arm:\n  locality: {model: {depth: 2}}\n  other: {seed: 9}\n"
    )
    config = load_config("paper/locality", profile=tmp_path / "profile.yaml", overrides=["model.num_heads=4"])
    assert (config.model.feed_forward, config.seed, config.model.depth, config.model.num_heads) == ("locality", 5, 2, 4)
    assert load_config("paper/baseline", profile=tmp_path / "profile.yaml").model.depth == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optimizer.learning_rat=0.1",
            "unknown key optimizer.learning_rat; the nearest valid key is optimizer.learning_rate",
        ),
        ("lr=0.1", "the nearest valid key is optimizer.learning_rate"),
        ("batch_size=8", "unknown key batch_size; it belongs at optimizer.batch_size"),
        ("modle.depth=3", "the nearest valid key is model"),
        ("optimizer.learning_rate=1e-3", "YAML reads 1e-3 as text; write 0.001"),
        ("name=no", "YAML reads yes, no, on and off as true and false; put it in quotes"),
        ("data.synthetic=yes please", "expected true or false, found 'yes please'"),
        ("model.depth=2.5", "model.depth: expected a whole number, found 2.5"),
        ("model.depth=null", "model.depth: expected a whole number, found null"),
        ("model.depth=true", "model.depth: expected a whole number, found true"),
        ("optimizer.learning_rate=.nan", "expected a number, found nan"),
        ("optimizer.learning_rate=.inf", "expected a number, found inf"),
        ("model.feed_forward=conv", "expected mlp | locality | localvit, found 'conv'"),
        ("model=3", "model: expected a section, found 3"),
        ("augmentation.crop_scale=[0.1]", "expected a list of 2 numbers"),
        ("augmentation.crop_scale=[0.5, 0.1]", "[low, high] above 0, low first"),
        ("augmentation.mixup_alpha=-1", "expected 0 or more, found -1"),
        ("model.image_size=50", "a multiple of model.patch_size 16, such as 48 or 64, found 50"),
        ("model.num_heads=5", "a divisor of model.embed_dim 384"),
        ("model.drop_path=1", "below 1"),
        ("budget.epochs=5", "exactly one of hours, epochs, steps; found hours"),
        ("budget.hours=0", "budget.hours: expected more than 0"),
        ("optimizer.min_learning_rate=1", "0 to optimizer.learning_rate"),
        ("curriculum.size_step=32", "null where curriculum.initial_size is null"),
        ("data.std=[0, 1, 1]", "three numbers above 0"),
        ("runtime.workers=many", "expected a whole number or auto, found 'many'"),
        ("seed", "expected section.key=value"),
        ("seed=[1", "not a valid YAML value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override, expected):
    message = error("paper/baseline", overrides=[override])
    assert expected in message
    assert override in message or "budget" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("curriculum.initial_size=40", "a multiple of model.patch_size 16"),
        ("curriculum.size_step=24", "a multiple of model.patch_size 16"),
        ("curriculum.initial_size=256", "at most model.image_size 224"),
        ("curriculum.budget_fraction_per_stage=0.1", "exactly one of it and curriculum.budget_fraction_per_stage"),
        ("curriculum.epochs_per_stage=null", "exactly one of it and curriculum.budget_fraction_per_stage"),
        ("curriculum.epochs_per_stage=0", "1 or more"),
    ],
)
def test_an_impossible_curriculum_is_refused(override, expected):
    assert expected in error("paper/combined", overrides=[override])


def test_a_curriculum_by_budget_must_reach_its_last_size():
    by_budget = ["curriculum.epochs_per_stage=null", "curriculum.budget_fraction_per_stage="]
    load_config("paper/combined", overrides=[by_budget[0], by_budget[1] + "0.16"])  # 6 × 0.16 < 1
    assert "below 1/6" in error("paper/combined", overrides=[by_budget[0], by_budget[1] + "0.17"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: nowhere.yaml\n", "extends: expected a YAML file beside it, found 'nowhere.yaml'"),
        ("extends: mine.yaml\n", "extends itself"),
        ("seed: 1\nseed: 2\n", "line 2: not valid YAML: 'seed' is given twice"),
        ("seed: [1\n", "not valid YAML"),
        ("- seed\n", "expected `key: value` lines"),
        ("seed: 1\n", "missing name"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = error(path)
    assert expected in message
    assert "mine.yaml" in message


def test_a_missing_file_names_what_there_is():
    assert "did you mean paper/combined?" in error("paper/combine")
    assert "shipped: " in error("something.yaml")
    assert "no profile quik" in error("paper/baseline", profile="quik")


def test_the_base_file_is_the_only_place_of_defaults():
    assert load_config("base").name == "base"  # it is complete by itself

    def sections(config):
        yield config
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from sections(value)

    for section in sections(load_config("base")):
        for field in dataclasses.fields(section):
            assert field.default is dataclasses.MISSING, field.name
            assert field.default_factory is dataclasses.MISSING, field.name


def test_no_configuration_needs_torch():
    load = "from vit24h.config import load_config; load_config('paper/combined')"
    code = f"import sys; {load}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path("/"), check=False).returncode == 0
