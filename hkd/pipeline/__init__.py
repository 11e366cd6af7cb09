"""`hkd run`: `runner` knows stages and digests, `recipe` the TOML that drives all, `stages` what each stage does."""
