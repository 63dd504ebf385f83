# SPDX-License-Identifier: Apache-2.0
"""One address for many models: requests are routed to the engines that serve them, and models that nobody
asks for give their memory to others until somebody does.

What decides is pure (functions of arguments, time among them; no I/O, clock, randomness or asyncio):

    config      the configuration, or one sentence about what is wrong with it
    lifecycle   one model, awake or asleep: whom it serves, who waits, when it is woken and put to sleep
    victims     which model gives way for another that finds no room
    balance     which of a model's replicas is asked, and which is not asked for a while
    traffic     what is counted of a model's requests
    errors      what people are told when something fails
"""
