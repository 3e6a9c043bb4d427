"""benchmarks/near_capacity.py: a queue near the capacity has the longer tail."""

import re

from benchmarks import near_capacity


def test_p99_grows_with_the_load_and_shrinks_with_the_cards(capsys):
    assert near_capacity.main(["--cards", "1", "4", "--seconds", "150", "--seeds", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 2
    one, four = ([float(cell) for cell in re.findall(r"([\d.]+) s \(", row)] for row in rows)
    assert one == sorted(one)
    assert four[-1] < one[-1]
    # One image alone takes 0.66 s, so nobody can be quicker.
    assert min(four) > 0.66
