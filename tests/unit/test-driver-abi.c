/* SPDX-License-Identifier: Apache-2.0 */

/* Our declarations of the driver's interface against the vendor's headers, where those are installed. */

#include <string.h>

#include "driver-facts.h"
#include "test.h"

#if defined(HAVE_CUDA_H) || defined(HAVE_NVML_H)
static void compare(const struct fact *ours, const struct fact *vendor)
{
    unsigned n = 0;

    for (; ours->name; ours++, vendor++, n++) {
        check_str(ours->name, vendor->name);
        if (ours->value != vendor->value)
            test_fail(__FILE__, __LINE__, "%s: ours is %lld, the vendor's %lld", ours->name, ours->value,
                      vendor->value);
    }
    check(!vendor->name);
    check(n > 20);
}
#endif

TEST(cuda)
{
#ifdef HAVE_CUDA_H
    compare(facts_ours, facts_vendor);
#else
    test_skip("no cuda.h");
#endif
}

TEST(nvml)
{
#ifdef HAVE_NVML_H
    compare(nvml_facts_ours, nvml_facts_vendor);
#else
    test_skip("no nvml.h");
#endif
}
