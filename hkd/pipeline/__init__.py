"""`hkd run`: one TOML drives everything. `runner` knows stages and digests, `recipe` the TOML, `stages` what each stage
does."""
