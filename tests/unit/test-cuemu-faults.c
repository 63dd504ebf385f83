/* SPDX-License-Identifier: Apache-2.0 */
#include "faults.h"

#include <errno.h>

#include "cuda/api.h"
#include "test.h"

static struct fault_plan plan_of(const char *text)
{
    struct fault_plan plan;
    unsigned offset = 0;

    if (faults_parse(text, &plan, &offset) != 0)
        test_fail(__FILE__, __LINE__, "refused at %u: %s", offset, text);
    return plan;
}

TEST(nth_call)
{
    struct fault_plan plan = plan_of("cuMemCreate:3=2;cuMemMap:2-3=801;cuMemRelease:5+=UNKNOWN");

    check_eq(plan.n_rules, 3);
    check_eq(faults_check(&plan, "cuMemCreate", 2, 9), 0);
    check_eq(faults_check(&plan, "cuMemCreate", 3, 9), CUDA_ERROR_OUT_OF_MEMORY);
    check_eq(faults_check(&plan, "cuMemCreate", 4, 9), 0);
    check_eq(faults_check(&plan, "cuMemMap", 1, 1), 0);
    check_eq(faults_check(&plan, "cuMemMap", 2, 1), CUDA_ERROR_NOT_SUPPORTED);
    check_eq(faults_check(&plan, "cuMemMap", 3, 1), CUDA_ERROR_NOT_SUPPORTED);
    check_eq(faults_check(&plan, "cuMemMap", 4, 1), 0);
    check_eq(faults_check(&plan, "cuMemRelease", 4, 1), 0);
    check_eq(faults_check(&plan, "cuMemRelease", 5000, 1), CUDA_ERROR_UNKNOWN);
    check_eq(faults_check(&plan, "cuMemUnmap", 3, 1), 0);
}

TEST(nth_call_of_any)
{
    struct fault_plan plan = plan_of("*:17=CUDA_ERROR_INVALID_VALUE");

    check_eq(faults_check(&plan, "cuMemMap", 1, 17), CUDA_ERROR_INVALID_VALUE);
    check_eq(faults_check(&plan, "cuMemMap", 17, 18), 0);
}

TEST(nth_call_of_a_library)
{
    struct fault_plan plan = plan_of("nvml*:3=999;cu*:4");

    check_eq(faults_check(&plan, "nvmlDeviceGetUUID", 1, 3), 999);
    check_eq(faults_check(&plan, "cuMemMap", 1, 3), 0);
    check_eq(faults_check(&plan, "cuMemMap", 1, 4), CUDA_ERROR_OUT_OF_MEMORY);
    check_eq(faults_check(&plan, "nvmlDeviceGetUUID", 1, 4), 0);
}

TEST(chance_is_seeded)
{
    struct fault_plan one = plan_of("cuMemMap:p0.1@seed=1"), same = plan_of("cuMemMap:p0.1=2@seed=1"),
                      other = plan_of("cuMemMap:p0.1@seed=2");
    unsigned n = 0, differ = 0;

    for (unsigned i = 1; i <= 10000; i++) {
        int error = faults_check(&one, "cuMemMap", i, i);

        n += error != 0;
        check_eq(error, faults_check(&same, "cuMemMap", i, i));
        differ += error != faults_check(&other, "cuMemMap", i, i);
    }
    check(n > 850 && n < 1150);
    check(differ > 1000);
}

TEST(chance_bounds)
{
    struct fault_plan always = plan_of("cuInit:p1"), never = plan_of("cuInit:p0");

    for (unsigned i = 1; i < 1000; i++) {
        check_eq(faults_check(&always, "cuInit", i, i), CUDA_ERROR_OUT_OF_MEMORY);
        check_eq(faults_check(&never, "cuInit", i, i), 0);
    }
}

static void expect_bad(const char *text, unsigned want)
{
    struct fault_plan plan = {.n_rules = 99};
    unsigned offset = 999;

    if (faults_parse(text, &plan, &offset) != -EINVAL || offset != want || plan.n_rules != 99)
        test_fail(__FILE__, __LINE__, "\"%s\": offset %u, not %u", text, offset, want);
}

TEST(garbage)
{
    plan_of("");
    plan_of("cuMemMap:1;");
    expect_bad("cuMemMap", 0);
    expect_bad(":1", 0);
    expect_bad("cuMemMap:", 0);
    expect_bad("cuMemMap:0", 0);
    expect_bad("cuMemMap:3-2", 0);
    expect_bad("cuMemMap:1=", 0);
    expect_bad("cuMemMap:1=NO_SUCH", 0);
    expect_bad("cuMemMap:1=0", 0);
    expect_bad("cuMemMap:1=SUCCESS", 0);
    expect_bad("cuMemMap:p2", 0);
    expect_bad("cuMemMap:p", 0);
    expect_bad("cuMemMap:1@seed=x", 0);
    expect_bad("cuMemMap:1;;", 11);
    expect_bad("cuMemMap:1;x:y", 11);
}
