"""Pretrained models: where they come from, what their files hold. Needs ``pip install 'hipattn[models]'``."""
