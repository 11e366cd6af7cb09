"""The drawing says what is there."""

from dataclasses import replace

from hkd.student import StudentConfig, describe


def test_drawing_names_layers_taps_heads_and_what_export_drops(config: StudentConfig) -> None:
    lines = describe(config).splitlines()
    place = {line.split(":")[0].strip(" ├└─"): n for n, line in enumerate(lines)}
    layer = {n: next(i for i, line in enumerate(lines) if line.strip().startswith(f"layer {n}")) for n in (1, 2, 3)}
    assert layer[1] < place["senone-hard"] < place["senone-aux"] < layer[2] < place["monophone-aux"] < layer[3] < place["main"]
    assert "30 units × 4 slots of 10 ms" in lines[place["senone-aux"]]
    assert "dropped at export" in lines[place["senone-aux"]]
    assert "dropped at export" not in lines[place["main"]]
    none = describe(replace(config, heads=()))
    exported = none.splitlines()[-1].split()[1].rstrip(":")
    assert f"{exported} exported, 0 in heads" in none
    assert f"{exported} exported" in lines[-1]
