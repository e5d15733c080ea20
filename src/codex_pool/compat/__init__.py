"""Code written for other SDKs, run on a pool.

`from codex_pool.compat import openai_codex` in place of `import openai_codex`: see docs/compatibility.md.
"""
