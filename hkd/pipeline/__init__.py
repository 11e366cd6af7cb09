"""`hkd run`: one TOML drives everything. `runner` knows stages and digests, `recipe` knows the TOML, `actions` call the library."""
