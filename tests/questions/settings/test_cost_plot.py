"""What a thousand images cost: the sums, the words, and what is not known."""

import pytest

from benchlib import plots
from benchlib.questions.settings.cost_plot import energies, machine_costs


def title(ax):
    return " ".join(ax.get_title("left").replace("\u00a0", " ").split())


@pytest.fixture
def two(setting):
    return setting.frame(
        setting.row("baseline", 5.0),
        setting.row("bf16", 10.0, confirmed=True, exact=False, energy_per_image_j=1800.0),
    )


def test_the_sums_are_those_by_hand(two):
    minutes = machine_costs(two, None)
    assert [(cost.setting, cost.value) for cost in minutes] == [
        ("bf16, serial", pytest.approx(100 / 60)),
        ("baseline, serial", pytest.approx(200 / 60)),
    ]
    # 10 images/s within 3 %: more images/s cost less
    assert minutes[0].interval == pytest.approx((100 / 60 / 1.03, 100 / 60 / 0.97))
    money = machine_costs(two, 3.6)
    assert [cost.value for cost in money] == pytest.approx([0.1, 0.2])
    (energy,) = energies(two)
    assert (energy.setting, energy.value) == ("bf16, serial", pytest.approx(0.5))


def test_the_least_is_said_with_what_it_rests_on(two, made):
    ax = plots.costs(settings=two, record=made.record(), price_per_hour=3.6)
    assert title(ax) == (
        "tiny model, not SDXL: 1,000 images cost 0.100 (0.097 to 0.103) with bf16, serial, "
        "the least of 2 settings; the GPU takes 0.5 kWh (1 setting)"
    )
    assert ax.child_axes[0].get_xlabel().startswith("cost of 1,000 images, at 3.6 an hour,\nwithin")
    assert len(ax.child_axes) == 2
    assert all(panel.get_xlim()[0] == 0 for panel in ax.child_axes)
    faces = [bar.get_facecolor() for bar in ax.child_axes[0].patches]
    assert faces[0] != faces[1] == (1, 1, 1, 1), "a foretold bar is hollow"


def test_without_a_price_and_a_gpu_it_is_machine_time_alone(setting, made):
    alone = setting.frame(setting.row("baseline", 5.0))
    ax = plots.costs(settings=alone, record=made.record())
    said = "take 3.33 (3.03 to 3.70) minutes of the machine with baseline, serial (foretold); "
    assert f"{said}energy is not known" in title(ax)
    assert len(ax.child_axes) == 1


def test_energy_of_few_images_is_not_drawn(setting, made):
    row = setting.row("bf16", 10.0, confirmed=True, energy_per_image_j=1800.0)
    few = setting.frame(row | {"confirming_images": 4})
    assert energies(few) == []
    assert "energy is not known" in title(plots.costs(settings=few, record=made.record()))


def test_no_setting_is_no_figure_and_a_price_is_above_0(setting, made):
    nothing = plots.costs(settings=setting.frame(), record=made.record())
    assert plots.show(nothing).png is None
    with pytest.raises(ValueError, match="price_per_hour must be above 0, got 0; None is no price"):
        plots.costs(settings=setting.frame(), record=made.record(), price_per_hour=0)


def test_the_least_is_not_claimed_where_intervals_meet(setting, made):
    near = setting.frame(setting.row("baseline", 9.8), setting.row("bf16", 10.0))
    said = title(plots.costs(settings=near, record=made.record()))
    assert "with bf16, serial (foretold); not shown to be less than with baseline, serial" in said
    assert "the least" not in said
