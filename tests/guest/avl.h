/* SPDX-License-Identifier: GPL-2.0 */
/* What the guest tests share: the module, its sysctl, its counters. */
#ifndef AVL_H
#define AVL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Half a minute is for real hardware: guests are emulated, and the machine may be busy. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 180

#define AVL_MODULE "/avl/anon_vma_lazy.ko"
#define AVL_SYSCTL "/proc/sys/vm/anon_vma_lazy"
#define AVL_COVERAGE "/sys/module/anon_vma_lazy/parameters/coverage"
#define AVL_COUNTERS "/sys/kernel/debug/anon_vma_lazy/counters"

/* The console says which case runs, and since when: should it hang, or the guest die in it. */
static inline void avl_case(const char *name)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	dprintf(fd, "avl: case %s\n", name);
	close(fd);
}

/* Load a module from a file; 0 or -errno. */
static inline int avl_load_file(const char *file, const char *params)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	int err = 0;

	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, params, 0))
		err = -errno;
	close(fd);
	return err;
}

/* Load the module; 0 or -errno. */
static inline int avl_load(const char *params)
{
	return avl_load_file(AVL_MODULE, params);
}

/*
 * What a module of `make coverage` has counted goes to the console, before it is lost. No
 * malloc(): whoever unloads must not take a first fault.
 */
static inline void avl_show_coverage(void)
{
	static char page[4097];
	int fd, console;
	ssize_t len;

	if (access(AVL_COVERAGE, R_OK))
		return;
	console = open("/dev/console", O_WRONLY | O_CLOEXEC);
	do {
		fd = open(AVL_COVERAGE, O_RDONLY | O_CLOEXEC);
		len = read(fd, page, sizeof(page) - 1);
		close(fd);
		page[len < 0 ? 0 : len] = 0;
		for (char *line = strtok(page, "\n"); line; line = strtok(NULL, "\n"))
			dprintf(console, "avl: cover %s\n", line);
	} while (len > 0);
	close(console);
}

/* Unload the module; 0 or -errno. */
static inline int avl_unload(void)
{
	avl_show_coverage();
	return syscall(SYS_delete_module, "anon_vma_lazy", O_NONBLOCK) ? -errno : 0;
}

/*
 * Unload the module once the last root is freed, which happens soon after the
 * last process that has one is gone. 0 or -errno, -EAGAIN after 5 seconds.
 */
static inline int avl_unload_soon(void)
{
	int err = avl_unload();

	for (int i = 0; err == -EAGAIN && i < 500; i++) {
		usleep(10000);
		err = avl_unload();
	}
	return err;
}

/*
 * Take the first anonymous fault of each VMA that the program has, before it
 * loads the module: a process that has a lazy root could not unload it.
 */
__attribute__((constructor)) static void avl_fault_all(void)
{
	void *heap = malloc(1 << 16);

	if (heap)
		memset(heap, 1, 1 << 16);
	free(heap);
	if (!mlockall(MCL_CURRENT))
		munlockall();
}

/* Read a whole small file; its length or -errno. */
static inline ssize_t avl_read(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd < 0)
		return -errno;
	len = read(fd, text, size - 1);
	if (len < 0)
		len = -errno;
	else
		text[len] = 0;
	close(fd);
	return len;
}

/* Write in one call; 0 or -errno. A short write is -EIO. */
static inline int avl_write(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t done;
	int err = 0;

	if (fd < 0)
		return -errno;
	done = write(fd, text, len);
	if (done < 0)
		err = -errno;
	else if ((size_t)done != len)
		err = -EIO;
	close(fd);
	return err;
}

/* A number that the kernel command line sets, as in "avl.rounds=10". */
static inline unsigned long avl_number(const char *option, unsigned long otherwise)
{
	char text[4096];
	const char *at;

	if (avl_read("/proc/cmdline", text, sizeof(text)) <= 0)
		return otherwise;
	at = strstr(text, option);
	return at ? strtoul(at + strlen(option), NULL, 0) : otherwise;
}

/* A counter of the module, or -1 if there is none of that name. */
static inline long long avl_counter(const char *name)
{
	char text[4096], *line, *save;

	if (avl_read(AVL_COUNTERS, text, sizeof(text)) < 0)
		return -1;
	for (line = strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		size_t len = strlen(name);

		if (!strncmp(line, name, len) && line[len] == ' ')
			return strtoll(line + len + 1, NULL, 10);
	}
	return -1;
}

/* Whether the kernel's log has this text. */
static inline bool avl_log_has(const char *text)
{
	static char log[1 << 18];
	int len = klogctl(3 /* read all */, log, sizeof(log) - 1);

	if (len < 0)
		return false;
	log[len] = 0;
	return strstr(log, text);
}

/* Put a line of one's own into the kernel's log, to look behind it later. */
static inline int avl_log_mark(const char *mark)
{
	char line[128];

	/* Without its end it is kept back until another one comes. */
	return avl_write("/dev/kmsg", line, snprintf(line, sizeof(line), "%s\n", mark));
}

/* How often the kernel's log has this text behind the last @mark, or -1. */
static inline int avl_log_count(const char *mark, const char *text)
{
	static char log[1 << 18];
	int len = klogctl(3 /* read all */, log, sizeof(log) - 1), nr = 0;
	char *at = NULL, *next = log;

	if (len < 0)
		return -1;
	log[len] = 0;
	while ((next = strstr(next, mark)))
		at = next++;
	if (!at)
		return -1;
	while ((at = strstr(at + 1, text)))
		nr++;
	return nr;
}

/*
 * Map @nr single pages with holes between them, so that none of them merge.
 * Page i is at area + 2 * i * page. NULL on failure. Nothing is touched.
 */
static inline char *avl_map_separate(size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, 2 * nr * page, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < nr; i++)
		if (mprotect(area + 2 * i * page, page, PROT_READ | PROT_WRITE))
			return NULL;
	return area;
}

#endif /* AVL_H */
