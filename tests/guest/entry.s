# Both entries of the guest, and its way to ring 3.
#
# A few dozen instructions run in ring 0, and then never again: some KVMs (PVM, which needs no VMX or SVM) emulate
# ring 0 one instruction at a time, while ring 3 runs on the processor everywhere. The way down is SYSEXIT with REX.W,
# which such emulators know, where IRET and SYSRET are missing. Ports stay reachable in two ways: through the TSS's I/O
# bitmap, since a hypervisor may ignore IOPL, and through IOPL, since QEMU's TCG finds no bitmap in a TSS that is busy
# (`check_io`), and busy is what KVM says that every TSS is when its vCPU is saved. There is no IDT: any exception ends in a triple fault, which
# the VMM sees as a shutdown.
#
#   start_pvh      32 bits, paging off, ebx = struct hvm_start_info
#   start_linux64  64 bits, identity-mapped, rsi = struct boot_params
#
# Both end in guest_main(boot_info: rdi, entry_kind: rsi), in ring 3, with the first 4 GiB identity-mapped for it.

.set KERNEL_CODE, 0x08          # SYSEXIT takes the user segments from fixed distances behind this one.
.set TSS_SELECTOR, 0x38
.set MSR_SYSENTER_CS, 0x174
.set MSR_EFER, 0xc0000080
.set EFER_LME, 0x100
.set CR4_PAE_AND_SSE, 0x620     # PAE, OSFXSR, OSXMMEXCPT
.set CR0_EM_AND_TS, 0x0c
.set CR0_PG_AND_MP, 0x80000002
.set RFLAGS_IOPL_3, 0x3002
.set PAGE_USER, 0x07            # present, writable, user
.set PAGE_USER_2M, 0x87
.set IO_BITMAP, 104             # its offset in the TSS
.set IO_BITMAP_BYTES, 8192

.text
.code32
.globl start_pvh
start_pvh:
    mov $1, %ebp
    mov %cr4, %eax
    or $CR4_PAE_AND_SSE, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov %cr0, %eax
    and $~CR0_EM_AND_TS, %eax
    or $CR0_PG_AND_MP, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CODE, $go_down

.code64
.globl start_linux64
start_linux64:
    mov %esi, %ebx
    xor %ebp, %ebp
    mov %cr4, %rax
    or $CR4_PAE_AND_SSE, %rax
    mov %rax, %cr4
    mov $pml4, %eax
    mov %rax, %cr3
    mov %cr0, %rax
    and $~CR0_EM_AND_TS, %rax
    mov %rax, %cr0
    lgdt gdt_pointer

go_down:
    # The TSS descriptor holds its base in pieces, which no relocation can write.
    mov $tss, %eax
    mov %ax, gdt_tss + 2
    shr $16, %eax
    mov %al, gdt_tss + 4
    mov %ah, gdt_tss + 7
    movw $IO_BITMAP, tss + 102
    movb $0xff, tss + IO_BITMAP + IO_BITMAP_BYTES
    mov $TSS_SELECTOR, %eax
    ltr %ax
    mov $MSR_SYSENTER_CS, %ecx
    mov $KERNEL_CODE, %eax
    xor %edx, %edx
    wrmsr
    mov %ebx, %edi
    mov %ebp, %esi
    xor %ebp, %ebp
    mov $stack_top, %esp
    pushq $RFLAGS_IOPL_3
    popfq
    mov $guest_main, %edx
    mov $stack_top - 8, %ecx    # as a call leaves it: 8 below a multiple of 16
    sysexitq

.data
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 kernel code, 64 bits
    .quad 0x00cf93000000ffff    # 0x10 kernel data
    .quad 0x00cffb000000ffff    # 0x18 user code, 32 bits
    .quad 0x00cff3000000ffff    # 0x20 user data
    .quad 0x00affb000000ffff    # 0x28 user code, 64 bits
    .quad 0x00cff3000000ffff    # 0x30 user data
gdt_tss:
    .quad 0x0000890000000000 + IO_BITMAP + IO_BITMAP_BYTES
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

# The first 4 GiB are mapped by tables that are part of the image, so that no ring 0 loop builds them. Ring 3 can fill
# page_directories_high itself, at full speed, when there is RAM beyond.
.balign 4096
pml4:
    .quad pdpt + PAGE_USER
    .fill 511, 8, 0
pdpt:
    .set i, 0
    .rept 4
    .quad page_directories + i * 4096 + PAGE_USER
    .set i, i + 1
    .endr
    .set i, 0
    .rept 60
    .quad page_directories_high + i * 4096 + PAGE_USER
    .set i, i + 1
    .endr
    .fill 448, 8, 0
page_directories:
    .set i, 0
    .rept 2048
    .quad i * 0x200000 + PAGE_USER_2M
    .set i, i + 1
    .endr

.bss
.balign 4096
.globl page_directories_high
page_directories_high:
    .skip 60 * 4096
tss:
    .skip IO_BITMAP + IO_BITMAP_BYTES + 8
.balign 16
    .skip 32768
stack_top:
