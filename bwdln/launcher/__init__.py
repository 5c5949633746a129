"""What Hydra's plugins of this package do; `plugin/` holds the plugins themselves, for Hydra to discover."""
