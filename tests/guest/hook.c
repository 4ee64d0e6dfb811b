// SPDX-License-Identifier: GPL-2.0
/*
 * The first-fault hook: called once for each VMA that takes an anonymous fault,
 * and counted as what becomes of it. The guest is quiet beside the test; what
 * else faults meanwhile (its own shell) is allowed for by SLACK. And who pays
 * for the root that the first one of a process makes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

#define VMAS 300
#define SLACK 20

FIXTURE(hook)
{
	size_t page;
};

FIXTURE_VARIANT(hook)
{
	const char *params;
	bool on;
};

FIXTURE_VARIANT_ADD(hook, on)
{
	.params = "",
	.on = true,
};

FIXTURE_VARIANT_ADD(hook, off)
{
	.params = "enabled=0",
};

FIXTURE_SETUP(hook)
{
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(avl_load(variant->params), 0);
}

/* In the parent: the test itself has a lazy root by then. */
FIXTURE_TEARDOWN_PARENT(hook)
{
	ASSERT_EQ(avl_unload_soon(), 0);
}

/* What a counter grows by while @body runs; the reading itself is warmed up. */
#define GROWTH(name, body) ({				\
	const char *name_ = (name);			\
	long long before_, after_;			\
							\
	avl_counter(name_);				\
	before_ = avl_counter(name_);			\
	body;						\
	after_ = avl_counter(name_);			\
	before_ < 0 || after_ < 0 ? -1 : after_ - before_;	\
})

static void touch(char *area, size_t nr, size_t page)
{
	for (size_t i = 0; i < nr; i++)
		area[2 * i * page]++;
}

TEST_F(hook, quiet_when_nothing_faults_first)
{
	long long n = GROWTH("first_fault", usleep(50000));

	EXPECT_GE(n, 0);
	EXPECT_LE(n, SLACK);
}

TEST_F(hook, one_call_for_each_vma)
{
	char *area = avl_map_separate(VMAS);
	long long n;

	ASSERT_NE(area, NULL);
	n = GROWTH("first_fault", touch(area, VMAS, self->page));
	EXPECT_GE(n, VMAS);
	EXPECT_LE(n, VMAS + SLACK);
	/* They are prepared now. */
	n = GROWTH("first_fault", touch(area, VMAS, self->page));
	EXPECT_GE(n, 0);
	EXPECT_LE(n, SLACK);
}

TEST_F(hook, reading_is_not_an_anonymous_fault)
{
	char *area = avl_map_separate(VMAS);
	volatile char sum = 0;
	long long n;

	ASSERT_NE(area, NULL);
	n = GROWTH("first_fault", {
		for (size_t i = 0; i < VMAS; i++)
			sum += area[2 * i * self->page];
	});
	EXPECT_GE(n, 0);
	EXPECT_LE(n, SLACK);
}

/* On, each of them becomes Lazy; off, it is left to Linux. */
TEST_F(hook, counted_as_what_becomes_of_it)
{
	const char *name = variant->on ? "vma_lazy" : "first_fault_off";
	const char *other = variant->on ? "first_fault_off" : "vma_lazy";
	char *area = avl_map_separate(VMAS);
	long long n, others;

	ASSERT_NE(area, NULL);
	avl_counter(other);
	others = avl_counter(other);
	n = GROWTH(name, touch(area, VMAS, self->page));
	EXPECT_GE(n, VMAS);
	EXPECT_LE(n, VMAS + SLACK);
	EXPECT_EQ(avl_counter(other), others);
}

/* An mm that has a root goes on as it began; one that has none follows the mode. */
TEST_F(hook, mode_changes_under_way)
{
	char *area = avl_map_separate(3 * VMAS);
	long long n;

	ASSERT_NE(area, NULL);
	touch(area, VMAS, self->page);
	ASSERT_EQ(avl_write(AVL_SYSCTL, variant->on ? "0" : "1", 1), 0);
	n = GROWTH("vma_lazy", touch(area + 2 * VMAS * self->page, VMAS, self->page));
	EXPECT_GE(n, VMAS);
	EXPECT_LE(n, VMAS + SLACK);
	/* It has a root now, in any case. */
	ASSERT_EQ(avl_write(AVL_SYSCTL, "0", 1), 0);
	n = GROWTH("vma_lazy", touch(area + 4 * VMAS * self->page, VMAS, self->page));
	EXPECT_GE(n, VMAS);
	EXPECT_LE(n, VMAS + SLACK);
}

/* A private file mapping is natural, whatever its offset in the file. */
TEST_F(hook, private_file_mapping_is_natural)
{
	int fd = open("/tmp/hook-file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	long long unnatural, n;
	char *area;

	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, 64 * self->page), 0);
	area = mmap(NULL, 8 * self->page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 32 * self->page);
	ASSERT_NE(area, MAP_FAILED);
	unnatural = avl_counter("first_fault_unnatural");
	n = GROWTH(variant->on ? "vma_lazy" : "first_fault_off", area[0] = 1);
	EXPECT_GE(n, 1);
	EXPECT_EQ(avl_counter("first_fault_unnatural"), unnatural);
	close(fd);
	unlink("/tmp/hook-file");
}

/* A VMA that was moved before its first fault gets the offset of where it is. */
TEST_F(hook, moved_before_the_first_fault_is_natural)
{
	char *area = avl_map_separate(2), *moved;
	long long unnatural, n;

	ASSERT_NE(area, NULL);
	moved = mremap(area, self->page, self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
		       area + self->page);
	ASSERT_EQ(moved, area + self->page);
	unnatural = avl_counter("first_fault_unnatural");
	n = GROWTH(variant->on ? "vma_lazy" : "first_fault_off", moved[0] = 1);
	EXPECT_GE(n, 1);
	EXPECT_EQ(avl_counter("first_fault_unnatural"), unnatural);
}

/*
 * The one way to an unfaulted VMA that is not natural: moved after its first
 * fault, then wiped in a child.
 */
TEST_F(hook, wiped_child_of_a_moved_vma_is_unnatural)
{
	char *area = avl_map_separate(2), *moved;
	pid_t pid;
	int status;

	ASSERT_NE(area, NULL);
	area[0] = 1;
	moved = mremap(area, self->page, self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
		       area + self->page);
	ASSERT_EQ(moved, area + self->page);
	ASSERT_EQ(madvise(moved, self->page, MADV_WIPEONFORK), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		long long n = GROWTH("first_fault_unnatural", moved[0] = 1);

		_exit(n == variant->on ? 0 : 1);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

struct racer {
	pthread_barrier_t *start;
	char *area;
	size_t page;
};

static void *race(void *arg)
{
	struct racer *racer = arg;

	for (size_t i = 0; i < VMAS; i++) {
		pthread_barrier_wait(racer->start);
		racer->area[2 * i * racer->page] = 1;
	}
	return NULL;
}

/*
 * Threads that fault the same VMA at once: more than one may come to the hook,
 * and for each VMA one of them comes to one that is not prepared.
 */
TEST_F(hook, threads_race_for_a_vma)
{
	long long all, raced, unnatural;
	pthread_barrier_t start;
	struct racer racer = { &start, avl_map_separate(VMAS), self->page };
	pthread_t threads[3];

	ASSERT_NE(racer.area, NULL);
	ASSERT_EQ(pthread_barrier_init(&start, NULL, 3), 0);
	avl_counter("first_fault");
	raced = avl_counter("first_fault_raced");
	unnatural = avl_counter("first_fault_unnatural");
	all = avl_counter("first_fault");
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, race, &racer), 0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	all = avl_counter("first_fault") - all;
	raced = avl_counter("first_fault_raced") - raced;
	TH_LOG("%lld calls for %d VMAs, %lld of them raced", all, VMAS, raced);
	EXPECT_GE(all - raced, VMAS);
	EXPECT_LE(all, 3 * VMAS + SLACK);
	EXPECT_EQ(avl_counter("first_fault_unnatural"), unnatural);
}

/* No process has a root; the mode is off. */
FIXTURE(fresh)
{
};

/* Whoever faults first sleeps, and again before it makes a root: all see that there is none. */
FIXTURE_SETUP(fresh)
{
	ASSERT_EQ(avl_load("enabled=0 test_delay_ms=20"), 0);
}

FIXTURE_TEARDOWN_PARENT(fresh)
{
	ASSERT_EQ(avl_unload_soon(), 0);
}

#define RACERS 3

struct first {
	char *area;
	size_t apart;
	int ready, go;
};

/* Its stack and all else has been touched when it says that it is ready. */
static void *be_first(void *arg)
{
	struct first *first = arg;
	char *mine = first->area +
		     first->apart * __atomic_fetch_add(&first->ready, 1, __ATOMIC_ACQ_REL);

	while (!__atomic_load_n(&first->go, __ATOMIC_ACQUIRE))
		;
	*mine = 1;
	return NULL;
}

/*
 * Threads of a process that has no root fault first, in VMAs that lie so far apart, or in one.
 * How many roots were one too many; -1: something is wrong.
 */
static int race_for_a_root(size_t apart)
{
	struct first first = { .area = avl_map_separate(RACERS), .apart = apart };
	const int mode = open(AVL_SYSCTL, O_WRONLY | O_CLOEXEC);
	pthread_t threads[RACERS];
	long long made, lost, lazy;
	unsigned int root;

	if (!first.area || mode < 0 || inside_root(0))
		return -1;
	for (int i = 0; i < RACERS; i++)
		if (pthread_create(&threads[i], NULL, be_first, &first))
			return -1;
	while (__atomic_load_n(&first.ready, __ATOMIC_ACQUIRE) < RACERS)
		usleep(100);
	made = avl_counter("root_new");
	lost = avl_counter("root_detach");
	lazy = avl_counter("vma_lazy");
	if (write(mode, "1", 1) != 1)
		return -1;
	__atomic_store_n(&first.go, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < RACERS; i++)
		pthread_join(threads[i], NULL);
	if (pwrite(mode, "0", 1, 0) != 1)
		return -1;
	made = avl_counter("root_new") - made;
	lost = avl_counter("root_detach") - lost;
	lazy = avl_counter("vma_lazy") - lazy;
	root = inside_root(0);
	for (int i = 0; i < RACERS; i++)
		if (strcmp(inside_vma(0, first.area + i * apart), "lazy")) {
			printf("# %s\n", inside_vma(0, first.area + i * apart));
			return -1;
		}
	/* One that others came to first is not prepared once more. */
	if (lazy != (apart ? RACERS : 1)) {
		printf("# %lld VMAs became Lazy\n", lazy);
		return -1;
	}
	/* The guest is quiet, but for what the racers make. */
	if (!root || made != lost + 1) {
		printf("# root %08x: %lld made, %lld lost\n", root, made, lost);
		return -1;
	}
	return lost;
}

static void race_until_one_is_lost(struct __test_metadata *_metadata, size_t apart)
{
	int status, lost = 0, rounds;

	for (rounds = 0; rounds < 300 && !lost; rounds++) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid)
			exit(race_for_a_root(apart));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_TRUE(WIFEXITED(status));
		ASSERT_LT(WEXITSTATUS(status), RACERS);
		lost = WEXITSTATUS(status);
	}
	TH_LOG("%d threads, roots that lost the race: %d, in round %d", RACERS, lost, rounds);
	EXPECT_GT(lost, 0);
}

TEST_F_TIMEOUT(fresh, threads_race_for_a_root, 240)
{
	race_until_one_is_lost(_metadata, 2 * sysconf(_SC_PAGESIZE));
}

/* And for the VMA: all have seen that it has no anon_vma. */
TEST_F_TIMEOUT(fresh, threads_race_for_a_root_and_a_vma, 240)
{
	race_until_one_is_lost(_metadata, 0);
}

/* The number behind a name in a file of names and numbers, or -1. */
static long field(const char *path, const char *name, int column)
{
	FILE *file = fopen(path, "re");
	char line[512], key[128];
	long found = -1, value[3] = { 0 };

	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%127s %ld %ld %ld", key, &value[0], &value[1], &value[2]) >
		    column + 1 && !strcmp(key, name))
			found = value[column];
	fclose(file);
	return found;
}

#define CHARGED 256

FIXTURE(charge)
{
};

FIXTURE_SETUP(charge)
{
	ASSERT_EQ(avl_load("enabled=0"), 0);
}

FIXTURE_TEARDOWN_PARENT(charge)
{
	ASSERT_EQ(avl_unload_soon(), 0);
}

/*
 * A root is charged to the memory cgroup of the process that gets it. Processes
 * that have none yet, in a cgroup of their own, take one more first fault each:
 * the root is all that this allocates from a slab cache.
 */
TEST_F(charge, root_is_charged_to_the_cgroup)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	long before = 0, after = 0, wanted;
	char *area = avl_map_separate(1);
	long long roots;
	struct family f;
	int fault[2];
	char c;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(family_init(&f), 0);
	ASSERT_EQ(pipe(fault), 0);
	ASSERT_TRUE(enter_cgroup());
	for (int i = 0; i < CHARGED; i++)
		KIN(&f, !close(fault[1]) && write(f.ready[1], "", 1) == 1 &&
		    read(fault[0], &c, 1) == 0 && (area[0] = 1));
	ASSERT_TRUE(family_await(&f, CHARGED));
	/* Back: what this does is not theirs. */
	ASSERT_EQ(avl_write("/sys/fs/cgroup/cgroup.procs", "0", 1), 0);
	/* The kernel brings its counts together every now and then. */
	for (int i = 0, same = 0; i < 30 && same < 4; i++) {
		long slab = field(CGROUP "/memory.stat", "slab", 0);

		same = slab == before ? same + 1 : 0;
		before = slab;
		sleep(1);
	}
	ASSERT_GT(before, 0);
	ASSERT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	close(fault[1]);
	ASSERT_TRUE(family_await(&f, CHARGED));
	ASSERT_EQ(avl_write(AVL_SYSCTL, "0", 1), 0);
	roots = avl_counter("root_new");
	EXPECT_GE(roots, CHARGED);
	/* Each CPU keeps up to a page of charges back. */
	wanted = CHARGED * field("/proc/slabinfo", "anon_vma_lazy_root", 2);
	for (int i = 0; i < 20 && after - before < wanted / 2; i++) {
		sleep(1);
		after = field(CGROUP "/memory.stat", "slab", 0);
	}
	TH_LOG("%lld roots, %ld bytes: %ld bytes charged", roots, wanted, after - before);
	EXPECT_GT(wanted, 8 * page);
	EXPECT_GE(after - before, wanted / 2);
	EXPECT_LE(after - before, wanted * 2);
	EXPECT_EQ(family_release(&f), 0);
	EXPECT_EQ(rmdir(CGROUP), 0);
}

TEST_HARNESS_MAIN
