/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Prints how many bytes the daemon keeps for each extent: the broker's record and the server's.
 */

#include <stdio.h>

#include "bench.h"
#include "pool.h"
#include "slots.h"

int main(void)
{
    printf("%zu\n", sizeof(struct extent) + sizeof(struct slot));
    end_output();
    return 0;
}
