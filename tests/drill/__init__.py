"""The whole life of a model on one machine, with clients that ask all the time: `make drill`."""
