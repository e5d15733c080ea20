"""Code written for other SDKs, run on this one.

`from codex_app_server.compat import openai_codex` in place of `import openai_codex`: see docs/compatibility.md.
"""
