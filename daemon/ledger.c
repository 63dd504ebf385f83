/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The ledger owns the sums: per state, per account, and of everything that is charged to somebody. They
 * change only with a charge, which is an object inside what consumes the bytes (an extent, a request that
 * waits); there is no other way to add or subtract, so a forgotten subtraction is a charge that was never
 * undone, and an account says so when it goes.
 *
 * It also reads proofs out of the driver's free memory. A release by us frees nothing while somebody else
 * still refers to the memory, so what others have had counts as held until a reading shows it. Readings
 * are compared with what free memory should have been, given the creates and releases in between, and
 * with what can be in use at all. Which bytes came free nobody can tell; whoever asks gives the credit to
 * the oldest, byte by byte, since a rise need not be of a whole extent. That may name the wrong one,
 * which harms nobody: creates go by free memory and not by this, and the sum is right.
 */

#include "ledger.h"

#include <assert.h>
#include <stddef.h>

#include "base/arith.h"

void ledger_init(struct ledger *ledger, uint64_t total_bytes, uint64_t free_bytes)
{
    *ledger = (struct ledger){
        .total_bytes = total_bytes,
        .free_bytes = u64_min(free_bytes, total_bytes),
    };
}

void ledger_deinit(struct ledger *ledger)
{
    for (unsigned state = 0; state < _LEDGER_N; state++)
        assert(ledger->bytes[state] == 0);
    assert(ledger->charged_bytes == 0);
}

static void add(struct ledger *ledger, const struct ledger_charge *charge)
{
    ledger->bytes[charge->state] += charge->bytes;
    if (charge->account) {
        charge->account->bytes[charge->state] += charge->bytes;
        ledger->charged_bytes += charge->bytes;
    }
}

static void subtract(struct ledger *ledger, const struct ledger_charge *charge)
{
    assert(ledger->bytes[charge->state] >= charge->bytes);
    ledger->bytes[charge->state] -= charge->bytes;
    if (charge->account) {
        assert(charge->account->bytes[charge->state] >= charge->bytes);
        charge->account->bytes[charge->state] -= charge->bytes;
        ledger->charged_bytes -= charge->bytes;
    }
}

void ledger_charge_init(struct ledger *ledger, struct ledger_charge *charge, struct ledger_account *account,
                        enum ledger_state state, uint64_t bytes)
{
    *charge = (struct ledger_charge){.account = account, .bytes = bytes, .state = state};
    add(ledger, charge);
}

void ledger_charge_move(struct ledger *ledger, struct ledger_charge *charge, struct ledger_account *account,
                        enum ledger_state state)
{
    subtract(ledger, charge);
    charge->account = account;
    charge->state = state;
    add(ledger, charge);
}

void ledger_charge_reduce(struct ledger *ledger, struct ledger_charge *charge, uint64_t bytes)
{
    assert(bytes <= charge->bytes);
    subtract(ledger, charge);
    charge->bytes -= bytes;
    add(ledger, charge);
}

void ledger_charge_deinit(struct ledger *ledger, struct ledger_charge *charge)
{
    subtract(ledger, charge);
    *charge = (struct ledger_charge){};
}

uint64_t ledger_account_used(const struct ledger_account *account)
{
    uint64_t used = 0;

    for (unsigned state = 0; state < _LEDGER_N; state++)
        used += account->bytes[state];
    return used;
}

void ledger_account_deinit(struct ledger_account *account)
{
    assert(ledger_account_used(account) == 0);
}

uint64_t ledger_held(const struct ledger *ledger)
{
    uint64_t held = 0;

    for (unsigned state = _LEDGER_HELD; state < _LEDGER_N; state++)
        held += ledger->bytes[state];
    return held;
}

void ledger_created(struct ledger *ledger, uint64_t bytes)
{
    ledger->free_bytes = u64_sub_floor(ledger->free_bytes, bytes);
}

void ledger_released(struct ledger *ledger, uint64_t bytes)
{
    ledger->free_bytes = u64_min(u64_add_ceil(ledger->free_bytes, bytes), ledger->total_bytes);
}

uint64_t ledger_look(struct ledger *ledger, uint64_t free_bytes, uint64_t unconfirmed_bytes)
{
    /* A create that was not reported yet had not been carried out when this was read. */
    uint64_t certain = ledger_held(ledger) - ledger->bytes[LEDGER_CREATING] - unconfirmed_bytes;
    uint64_t possible, risen;

    free_bytes = u64_min(free_bytes, ledger->total_bytes);
    possible = u64_sub_floor(ledger->total_bytes - free_bytes, certain);
    risen = u64_min(u64_sub_floor(free_bytes, ledger->free_bytes), unconfirmed_bytes);
    ledger->free_bytes = free_bytes;
    return u64_max(risen, u64_sub_floor(unconfirmed_bytes, possible));
}
