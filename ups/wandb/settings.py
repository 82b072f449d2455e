"""Settings of W&B's client."""


def known_settings(wandb, **wanted):
    """Versions of the client differ in their settings, and refuse one they do not know."""
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
