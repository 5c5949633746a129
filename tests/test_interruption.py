"""Ctrl-C as a request."""

import signal
import threading

import pytest

from bwdln.interruption import Interruption


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_press_is_noted_and_checked_for():
    with Interruption() as interruption:
        interruption.check()
        press()
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_the_second_press_interrupts_unless_held():
    with pytest.raises(KeyboardInterrupt), Interruption():
        press()
        press()
    with Interruption(hold=True) as interruption:
        press()
        press()
    assert interruption.requested


def test_the_handler_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Interruption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_main_thread_nothing_changes():
    seen = []

    def work():
        with Interruption():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
