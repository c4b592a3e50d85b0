"""Speed and memory, runnable by anyone; never part of the tests."""
