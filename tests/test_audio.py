def test_x(prepared):
    from hkd.align.alignment import Alignment

    a = Alignment(prepared / "alignment.arrow")
    print(len(a), a.failed, a["utt000"])
