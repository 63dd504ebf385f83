# SPDX-License-Identifier: Apache-2.0
"""kvcached-launch: the configured engines as supervised processes, without tmux or a service manager.

    main        the command
    instances   one instance, as the command sees it: start, stop, what is known of it
    plan        what is run for an instance: command, environment, address
    record      the state directory: what is known of an instance from one command to the next, and locks
    supervisor  the process that an instance has for its own: it runs the engine, and again when it fails
    restarts    when again, and when no more; arithmetic only
    scribe      the process that keeps an engine's log
    processes   who belongs to an engine, and their end
    logs        logs, as they are shown

An instance's supervisor and scribe have sessions of their own, so they survive the terminal. The engine
writes into a pipe, not into a file: a full disk is the scribe's trouble alone. A supervisor may be killed:
the next command finds the engine and all that it began, and the next start takes it over while it serves.
"""
