/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The least side: a round trip to the donor with the driver's calls between answer and next request, so that
 * both processes find the caches as a borrower and its broker do.
 */

#include <stdlib.h>

#include "side.h"
#include "wire/fdset.h"

struct least_side {
    struct donor *donor;
    struct driver_side *driver;
    struct side calls;
};

struct least_side *least_side_new(struct donor *donor, const char *driver_path, const char *uuid)
{
    struct least_side *least = calloc(1, sizeof(*least));

    if (!least)
        die("out of memory");
    least->donor = donor;
    least->driver = driver_side_new(driver_path, uuid);
    least->calls = driver_side_import(least->driver);
    return least;
}

void least_side_free(struct least_side *least)
{
    driver_side_free(least->driver);
    free(least);
}

static void map(void *state, unsigned n_pages)
{
    struct least_side *least = state;
    int fds[PAGES_MAX];

    donor_get(least->donor, n_pages, fds);
    driver_side_offer(least->driver, fds);
    least->calls.map(least->calls.state, n_pages);
    fds_close(fds, n_pages);
}

static void unmap(void *state, unsigned n_pages)
{
    struct least_side *least = state;

    least->calls.unmap(least->calls.state, n_pages);
    donor_get(least->donor, 0, NULL);
}

struct side least_side(struct least_side *least)
{
    return (struct side){.name = "least", .map = map, .unmap = unmap, .state = least};
}
