"""Procedural clips, and the small `nano` model trained on them. Needs torch, sam2 and opencv; the runtime imports nothing from here."""
