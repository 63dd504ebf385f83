/* SPDX-License-Identifier: Apache-2.0 */
#include "ledger.h"

#include "base/arith.h"
#include "test.h"

TEST(charges_move_between_states_and_accounts)
{
    struct ledger_account account = {};
    struct ledger_charge pending, extent;
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 90 * MIB);
    ledger_charge_init(&ledger, &pending, &account, LEDGER_PENDING, 8 * MIB);
    ledger_charge_init(&ledger, &extent, NULL, LEDGER_CREATING, 8 * MIB);
    check_eq(ledger_account_used(&account), 8 * MIB);
    check_eq(ledger.charged_bytes, 8 * MIB);
    check_eq(ledger_held(&ledger), 8 * MIB);
    ledger_charge_move(&ledger, &extent, NULL, LEDGER_POOL);
    check_eq(ledger.bytes[LEDGER_CREATING], 0);
    check_eq(ledger.bytes[LEDGER_POOL], 8 * MIB);
    check_eq(ledger.charged_bytes, 8 * MIB);
    ledger_charge_deinit(&ledger, &pending);
    check_eq(ledger.charged_bytes, 0);
    ledger_charge_move(&ledger, &extent, &account, LEDGER_GRANTED);
    check_eq(account.bytes[LEDGER_GRANTED], 8 * MIB);
    check_eq(ledger.charged_bytes, 8 * MIB);
    check_eq(ledger_held(&ledger), 8 * MIB);
    ledger_charge_move(&ledger, &extent, &account, LEDGER_LIMBO);
    ledger_charge_move(&ledger, &extent, &account, LEDGER_DESTROYING);
    check_eq(ledger_account_used(&account), 8 * MIB);
    ledger_charge_deinit(&ledger, &extent);
    ledger_account_deinit(&account);
    ledger_deinit(&ledger);
}

TEST(a_charge_can_shrink)
{
    struct ledger_account account = {};
    struct ledger_charge charge;
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 90 * MIB);
    ledger_charge_init(&ledger, &charge, &account, LEDGER_DESTROYING, 8 * MIB);
    ledger_charge_reduce(&ledger, &charge, 3 * MIB);
    check_eq(charge.bytes, 5 * MIB);
    check_eq(ledger_account_used(&account), 5 * MIB);
    check_eq(ledger_held(&ledger), 5 * MIB);
    check_eq(ledger.charged_bytes, 5 * MIB);
    ledger_charge_deinit(&ledger, &charge);
    ledger_account_deinit(&account);
    ledger_deinit(&ledger);
}

TEST(a_rise_proves_what_came_free)
{
    struct ledger_charge charge;
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 50 * MIB);
    ledger_charge_init(&ledger, &charge, NULL, LEDGER_DESTROYING, 20 * MIB);
    check_eq(ledger_look(&ledger, 58 * MIB, 20 * MIB), 8 * MIB);
    check_eq(ledger_look(&ledger, 58 * MIB, 12 * MIB), 0);
    check_eq(ledger_look(&ledger, 40 * MIB, 12 * MIB), 0);
    check_eq(ledger_look(&ledger, 70 * MIB, 12 * MIB), 12 * MIB);
    ledger_charge_deinit(&ledger, &charge);
    ledger_deinit(&ledger);
}

TEST(creates_and_releases_in_between_are_counted)
{
    struct ledger_charge charge;
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 50 * MIB);
    ledger_charge_init(&ledger, &charge, NULL, LEDGER_DESTROYING, 20 * MIB);
    ledger_created(&ledger, 8 * MIB);
    check_eq(ledger.free_bytes, 42 * MIB);
    ledger_released(&ledger, 2 * MIB);
    check_eq(ledger.free_bytes, 44 * MIB);
    /* Unchanged, though we took 6: somebody gave up 6. */
    check_eq(ledger_look(&ledger, 50 * MIB, 20 * MIB), 6 * MIB);
    ledger_charge_deinit(&ledger, &charge);
    ledger_deinit(&ledger);
}

TEST(what_cannot_be_there_is_gone)
{
    struct ledger_charge granted, creating, leaving, gone;
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 72 * MIB);
    ledger_charge_init(&ledger, &granted, NULL, LEDGER_GRANTED, 16 * MIB);
    ledger_charge_init(&ledger, &leaving, NULL, LEDGER_DESTROYING, 8 * MIB);
    ledger_charge_init(&ledger, &gone, NULL, LEDGER_DESTROYING, 8 * MIB);
    /* Not carried out when the reading was taken, so no part of it. */
    ledger_charge_init(&ledger, &creating, NULL, LEDGER_CREATING, 32 * MIB);
    /* Of 32 MiB in use 16 are granted and 8 wait for their release: the other 8 may be there. */
    check_eq(ledger_look(&ledger, 68 * MIB, 8 * MIB), 0);
    /* Somebody takes and gives: no rise, but 29 MiB cannot hold all. */
    ledger.free_bytes = 80 * MIB;
    check_eq(ledger_look(&ledger, 71 * MIB, 8 * MIB), 3 * MIB);
    check_eq(ledger_look(&ledger, 80 * MIB, 8 * MIB), 8 * MIB);
    ledger_charge_deinit(&ledger, &granted);
    ledger_charge_deinit(&ledger, &creating);
    ledger_charge_deinit(&ledger, &leaving);
    ledger_charge_deinit(&ledger, &gone);
    ledger_deinit(&ledger);
}

TEST(readings_beyond_the_device_are_the_device)
{
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 200 * MIB);
    check_eq(ledger.free_bytes, 100 * MIB);
    ledger_created(&ledger, 120 * MIB);
    check_eq(ledger.free_bytes, 0);
    ledger_released(&ledger, UINT64_MAX);
    check_eq(ledger.free_bytes, 100 * MIB);
    check_eq(ledger_look(&ledger, UINT64_MAX, 0), 0);
    check_eq(ledger.free_bytes, 100 * MIB);
    ledger_deinit(&ledger);
}

TEST(what_is_promised_is_charged_and_not_held)
{
    struct ledger_charge pending, reserved;
    struct ledger_account account = {};
    struct ledger ledger;

    ledger_init(&ledger, 100 * MIB, 90 * MIB);
    ledger_charge_init(&ledger, &pending, &account, LEDGER_PENDING, 8 * MIB);
    ledger_charge_init(&ledger, &reserved, &account, LEDGER_RESERVED, 4 * MIB);
    check_eq(ledger_account_used(&account), 12 * MIB);
    check_eq(ledger.charged_bytes, 12 * MIB);
    check_eq(ledger_held(&ledger), 0);
    ledger_charge_deinit(&ledger, &reserved);
    ledger_charge_deinit(&ledger, &pending);
    ledger_account_deinit(&account);
    ledger_deinit(&ledger);
}
