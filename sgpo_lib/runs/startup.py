"""What `make lab` has every kernel run first (PYTHONSTARTUP), so that also one that was restarted knows its errors."""

from sgpo_lib.runs import kernel

kernel.set_up()
del kernel  # it is in the user's namespace
