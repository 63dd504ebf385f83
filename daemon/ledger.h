/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Ledger: who holds how many bytes in what state, and what the driver's free memory proves.
 */

#include <stdbool.h>
#include <stdint.h>

enum ledger_state {
    LEDGER_PENDING,  /* promised to a request that waits; not memory yet */
    LEDGER_RESERVED, /* promised to whatever an instance asks for next; likewise */
    _LEDGER_HELD,
    LEDGER_CREATING = _LEDGER_HELD, /* from here on: the driver has given it, or is about to */
    LEDGER_POOL,
    LEDGER_LEASED, /* set aside for a region, not handed over */
    LEDGER_GRANTED,
    LEDGER_LIMBO,
    LEDGER_DESTROYING, /* until the driver's free memory confirms that it is gone */
    _LEDGER_N,
};

/* What one instance is charged. It asserts zero when it goes. */
struct ledger_account {
    uint64_t bytes[_LEDGER_N];
};

/* Lives inside whatever consumes the bytes. `account` is NULL where nobody in particular holds them. */
struct ledger_charge {
    struct ledger_account *account;
    uint64_t bytes : 56;
    uint64_t state : 8;
};

struct ledger {
    uint64_t total_bytes;      /* of the device */
    uint64_t free_bytes;       /* the last reading, corrected by what was reported since */
    uint64_t bytes[_LEDGER_N]; /* of all charges */
    uint64_t charged_bytes;    /* of charges with an account */
};

void ledger_init(struct ledger *ledger, uint64_t total_bytes, uint64_t free_bytes);
void ledger_deinit(struct ledger *ledger);

void ledger_charge_init(struct ledger *ledger, struct ledger_charge *charge, struct ledger_account *account,
                        enum ledger_state state, uint64_t bytes);
void ledger_charge_move(struct ledger *ledger, struct ledger_charge *charge, struct ledger_account *account,
                        enum ledger_state state);
/* A part of it is proven gone. */
void ledger_charge_reduce(struct ledger *ledger, struct ledger_charge *charge, uint64_t bytes);
void ledger_charge_deinit(struct ledger *ledger, struct ledger_charge *charge);

uint64_t ledger_account_used(const struct ledger_account *account);
void ledger_account_deinit(struct ledger_account *account);

/* Everything that the driver has given or is about to give: all states but those of mere promises. */
uint64_t ledger_held(const struct ledger *ledger);

/* The driver carried out a create, or a destroy whose effect needs no proof. */
void ledger_created(struct ledger *ledger, uint64_t bytes);
void ledger_released(struct ledger *ledger, uint64_t bytes);

/* Takes a reading. Of the destroying bytes, `unconfirmed_bytes` were released by the driver and may be gone;
 * so many of them are, as the reading proves. */
uint64_t ledger_look(struct ledger *ledger, uint64_t free_bytes, uint64_t unconfirmed_bytes);
