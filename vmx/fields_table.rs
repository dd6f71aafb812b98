// SPDX-License-Identifier: GPL-2.0
//! The table of the VMCS's fields, in the order and with the groups of the manual's appendix "Field Encoding in VMCS".
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use super::{group_of, width_of, Field, Group, Natural, Width};

/// Declares the constants, checks each encoding against the width and group it stands under, and lists them in `ALL`.
macro_rules! fields {
    ($( $title:literal: $group:ident, $width:ty { $( $(#[$doc:meta])* $name:ident = $encoding:literal, )* } )*) => {
        $( $(
            $(#[$doc])*
            pub const $name: Field<$width> = Field { encoding: $encoding, width: PhantomData };
            const _: () = assert!(
                width_of($encoding) as u32 == <$width as Width>::CODE as u32
                    && group_of($encoding) as u32 == Group::$group as u32
                    && $encoding & 0xffff_9001_u32 == 0,
                concat!("wrong encoding under ", $title)
            );
        )* )*
        /// Every field of this file: encoding and name.
        pub const ALL: &[(u32, &str)] = &[ $( $( ($encoding, stringify!($name)), )* )* ];
    };
}

fields! {
    "16-bit control fields": Control, u16 {
        /// Virtual-processor identifier.
        VPID = 0x0000,
        /// Posted-interrupt notification vector.
        POSTED_INTR_VECTOR = 0x0002,
        /// EPTP index.
        EPTP_INDEX = 0x0004,
        /// HLAT prefix size.
        HLAT_PREFIX_SIZE = 0x0006,
        /// Last PID-pointer index.
        LAST_PID_POINTER_INDEX = 0x0008,
    }
    "16-bit guest-state fields": Guest, u16 {
        /// Guest ES selector.
        GUEST_ES_SELECTOR = 0x0800,
        /// Guest CS selector.
        GUEST_CS_SELECTOR = 0x0802,
        /// Guest SS selector.
        GUEST_SS_SELECTOR = 0x0804,
        /// Guest DS selector.
        GUEST_DS_SELECTOR = 0x0806,
        /// Guest FS selector.
        GUEST_FS_SELECTOR = 0x0808,
        /// Guest GS selector.
        GUEST_GS_SELECTOR = 0x080a,
        /// Guest LDTR selector.
        GUEST_LDTR_SELECTOR = 0x080c,
        /// Guest TR selector.
        GUEST_TR_SELECTOR = 0x080e,
        /// Guest interrupt status (RVI and SVI).
        GUEST_INTR_STATUS = 0x0810,
        /// Page-modification-log index.
        PML_INDEX = 0x0812,
        /// Guest user-interrupt notification vector.
        GUEST_UINV = 0x0814,
    }
    "16-bit host-state fields": Host, u16 {
        /// Host ES selector.
        HOST_ES_SELECTOR = 0x0c00,
        /// Host CS selector.
        HOST_CS_SELECTOR = 0x0c02,
        /// Host SS selector.
        HOST_SS_SELECTOR = 0x0c04,
        /// Host DS selector.
        HOST_DS_SELECTOR = 0x0c06,
        /// Host FS selector.
        HOST_FS_SELECTOR = 0x0c08,
        /// Host GS selector.
        HOST_GS_SELECTOR = 0x0c0a,
        /// Host TR selector.
        HOST_TR_SELECTOR = 0x0c0c,
    }
    "64-bit control fields": Control, u64 {
        /// Address of I/O bitmap A (ports 0 to 0x7fff).
        IO_BITMAP_A = 0x2000,
        /// Address of I/O bitmap B (ports 0x8000 to 0xffff).
        IO_BITMAP_B = 0x2002,
        /// Address of the MSR bitmaps.
        MSR_BITMAP = 0x2004,
        /// VM-exit MSR-store address.
        EXIT_MSR_STORE_ADDR = 0x2006,
        /// VM-exit MSR-load address.
        EXIT_MSR_LOAD_ADDR = 0x2008,
        /// VM-entry MSR-load address.
        ENTRY_MSR_LOAD_ADDR = 0x200a,
        /// Executive-VMCS pointer.
        EXECUTIVE_VMCS_POINTER = 0x200c,
        /// PML address.
        PML_ADDRESS = 0x200e,
        /// TSC offset.
        TSC_OFFSET = 0x2010,
        /// Virtual-APIC address.
        VIRTUAL_APIC_ADDR = 0x2012,
        /// APIC-access address.
        APIC_ACCESS_ADDR = 0x2014,
        /// Posted-interrupt descriptor address.
        POSTED_INTR_DESC_ADDR = 0x2016,
        /// VM-function controls.
        VM_FUNCTION_CONTROLS = 0x2018,
        /// EPT pointer.
        EPT_POINTER = 0x201a,
        /// EOI-exit bitmap 0 (vectors 0 to 63).
        EOI_EXIT_BITMAP_0 = 0x201c,
        /// EOI-exit bitmap 1 (vectors 64 to 127).
        EOI_EXIT_BITMAP_1 = 0x201e,
        /// EOI-exit bitmap 2 (vectors 128 to 191).
        EOI_EXIT_BITMAP_2 = 0x2020,
        /// EOI-exit bitmap 3 (vectors 192 to 255).
        EOI_EXIT_BITMAP_3 = 0x2022,
        /// EPTP-list address.
        EPTP_LIST_ADDR = 0x2024,
        /// VMREAD-bitmap address.
        VMREAD_BITMAP = 0x2026,
        /// VMWRITE-bitmap address.
        VMWRITE_BITMAP = 0x2028,
        /// Virtualization-exception information address.
        VE_INFO_ADDR = 0x202a,
        /// XSS-exiting bitmap.
        XSS_EXITING_BITMAP = 0x202c,
        /// ENCLS-exiting bitmap.
        ENCLS_EXITING_BITMAP = 0x202e,
        /// Sub-page-permission-table pointer.
        SPP_TABLE_POINTER = 0x2030,
        /// TSC multiplier.
        TSC_MULTIPLIER = 0x2032,
        /// Tertiary processor-based VM-execution controls.
        TERTIARY_CONTROLS = 0x2034,
        /// ENCLV-exiting bitmap.
        ENCLV_EXITING_BITMAP = 0x2036,
        /// Low PASID directory address.
        LOW_PASID_DIRECTORY = 0x2038,
        /// High PASID directory address.
        HIGH_PASID_DIRECTORY = 0x203a,
        /// Shared EPT pointer.
        SHARED_EPT_POINTER = 0x203c,
        /// PCONFIG-exiting bitmap.
        PCONFIG_EXITING_BITMAP = 0x203e,
        /// Hypervisor-managed linear-address translation pointer.
        HLAT_POINTER = 0x2040,
        /// PID-pointer table address.
        PID_POINTER_TABLE = 0x2042,
        /// Secondary VM-exit controls.
        SECONDARY_EXIT_CONTROLS = 0x2044,
        /// IA32_SPEC_CTRL mask.
        SPEC_CTRL_MASK = 0x204a,
        /// IA32_SPEC_CTRL shadow.
        SPEC_CTRL_SHADOW = 0x204c,
    }
    "64-bit read-only data fields": ReadOnly, u64 {
        /// Guest-physical address of an EPT violation or misconfiguration.
        GUEST_PHYSICAL_ADDRESS = 0x2400,
    }
    "64-bit guest-state fields": Guest, u64 {
        /// VMCS link pointer.
        VMCS_LINK_POINTER = 0x2800,
        /// Guest IA32_DEBUGCTL.
        GUEST_DEBUGCTL = 0x2802,
        /// Guest IA32_PAT.
        GUEST_PAT = 0x2804,
        /// Guest IA32_EFER.
        GUEST_EFER = 0x2806,
        /// Guest IA32_PERF_GLOBAL_CTRL.
        GUEST_PERF_GLOBAL_CTRL = 0x2808,
        /// Guest PDPTE 0, for PAE paging under EPT.
        GUEST_PDPTE0 = 0x280a,
        /// Guest PDPTE 1, for PAE paging under EPT.
        GUEST_PDPTE1 = 0x280c,
        /// Guest PDPTE 2, for PAE paging under EPT.
        GUEST_PDPTE2 = 0x280e,
        /// Guest PDPTE 3, for PAE paging under EPT.
        GUEST_PDPTE3 = 0x2810,
        /// Guest IA32_BNDCFGS.
        GUEST_BNDCFGS = 0x2812,
        /// Guest IA32_RTIT_CTL.
        GUEST_RTIT_CTL = 0x2814,
        /// Guest IA32_LBR_CTL.
        GUEST_LBR_CTL = 0x2816,
        /// Guest IA32_PKRS.
        GUEST_PKRS = 0x2818,
    }
    "64-bit host-state fields": Host, u64 {
        /// Host IA32_PAT.
        HOST_PAT = 0x2c00,
        /// Host IA32_EFER.
        HOST_EFER = 0x2c02,
        /// Host IA32_PERF_GLOBAL_CTRL.
        HOST_PERF_GLOBAL_CTRL = 0x2c04,
        /// Host IA32_PKRS.
        HOST_PKRS = 0x2c06,
    }
    "32-bit control fields": Control, u32 {
        /// Pin-based VM-execution controls.
        PIN_CONTROLS = 0x4000,
        /// Primary processor-based VM-execution controls.
        PRIMARY_CONTROLS = 0x4002,
        /// Exception bitmap.
        EXCEPTION_BITMAP = 0x4004,
        /// Page-fault error-code mask.
        PF_ERROR_CODE_MASK = 0x4006,
        /// Page-fault error-code match.
        PF_ERROR_CODE_MATCH = 0x4008,
        /// CR3-target count.
        CR3_TARGET_COUNT = 0x400a,
        /// Primary VM-exit controls.
        EXIT_CONTROLS = 0x400c,
        /// VM-exit MSR-store count.
        EXIT_MSR_STORE_COUNT = 0x400e,
        /// VM-exit MSR-load count.
        EXIT_MSR_LOAD_COUNT = 0x4010,
        /// VM-entry controls.
        ENTRY_CONTROLS = 0x4012,
        /// VM-entry MSR-load count.
        ENTRY_MSR_LOAD_COUNT = 0x4014,
        /// VM-entry interruption-information field.
        ENTRY_INTR_INFO = 0x4016,
        /// VM-entry exception error code.
        ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
        /// VM-entry instruction length, in bytes.
        ENTRY_INSTRUCTION_LENGTH = 0x401a,
        /// TPR threshold.
        TPR_THRESHOLD = 0x401c,
        /// Secondary processor-based VM-execution controls.
        SECONDARY_CONTROLS = 0x401e,
        /// PAUSE-loop exiting gap, in TSC ticks.
        PLE_GAP = 0x4020,
        /// PAUSE-loop exiting window, in TSC ticks.
        PLE_WINDOW = 0x4022,
        /// Instruction-timeout (notify) window.
        NOTIFY_WINDOW = 0x4024,
    }
    "32-bit read-only data fields": ReadOnly, u32 {
        /// VM-instruction error.
        INSTRUCTION_ERROR = 0x4400,
        /// Exit reason.
        EXIT_REASON = 0x4402,
        /// VM-exit interruption information.
        EXIT_INTR_INFO = 0x4404,
        /// VM-exit interruption error code.
        EXIT_INTR_ERROR_CODE = 0x4406,
        /// IDT-vectoring information.
        IDT_VECTORING_INFO = 0x4408,
        /// IDT-vectoring error code.
        IDT_VECTORING_ERROR_CODE = 0x440a,
        /// VM-exit instruction length, in bytes.
        EXIT_INSTRUCTION_LENGTH = 0x440c,
        /// VM-exit instruction information.
        EXIT_INSTRUCTION_INFO = 0x440e,
    }
    "32-bit guest-state fields": Guest, u32 {
        /// Guest ES limit, in bytes.
        GUEST_ES_LIMIT = 0x4800,
        /// Guest CS limit, in bytes.
        GUEST_CS_LIMIT = 0x4802,
        /// Guest SS limit, in bytes.
        GUEST_SS_LIMIT = 0x4804,
        /// Guest DS limit, in bytes.
        GUEST_DS_LIMIT = 0x4806,
        /// Guest FS limit, in bytes.
        GUEST_FS_LIMIT = 0x4808,
        /// Guest GS limit, in bytes.
        GUEST_GS_LIMIT = 0x480a,
        /// Guest LDTR limit, in bytes.
        GUEST_LDTR_LIMIT = 0x480c,
        /// Guest TR limit, in bytes.
        GUEST_TR_LIMIT = 0x480e,
        /// Guest GDTR limit, in bytes.
        GUEST_GDTR_LIMIT = 0x4810,
        /// Guest IDTR limit, in bytes.
        GUEST_IDTR_LIMIT = 0x4812,
        /// Guest ES access rights.
        GUEST_ES_ACCESS = 0x4814,
        /// Guest CS access rights.
        GUEST_CS_ACCESS = 0x4816,
        /// Guest SS access rights.
        GUEST_SS_ACCESS = 0x4818,
        /// Guest DS access rights.
        GUEST_DS_ACCESS = 0x481a,
        /// Guest FS access rights.
        GUEST_FS_ACCESS = 0x481c,
        /// Guest GS access rights.
        GUEST_GS_ACCESS = 0x481e,
        /// Guest LDTR access rights.
        GUEST_LDTR_ACCESS = 0x4820,
        /// Guest TR access rights.
        GUEST_TR_ACCESS = 0x4822,
        /// Guest interruptibility state.
        GUEST_INTERRUPTIBILITY = 0x4824,
        /// Guest activity state.
        GUEST_ACTIVITY = 0x4826,
        /// Guest SMBASE.
        GUEST_SMBASE = 0x4828,
        /// Guest IA32_SYSENTER_CS.
        GUEST_SYSENTER_CS = 0x482a,
        /// VMX-preemption timer value.
        PREEMPTION_TIMER = 0x482e,
    }
    "32-bit host-state field": Host, u32 {
        /// Host IA32_SYSENTER_CS.
        HOST_SYSENTER_CS = 0x4c00,
    }
    "Natural-width control fields": Control, Natural {
        /// CR0 guest/host mask.
        CR0_MASK = 0x6000,
        /// CR4 guest/host mask.
        CR4_MASK = 0x6002,
        /// CR0 read shadow.
        CR0_READ_SHADOW = 0x6004,
        /// CR4 read shadow.
        CR4_READ_SHADOW = 0x6006,
        /// CR3-target value 0.
        CR3_TARGET_0 = 0x6008,
        /// CR3-target value 1.
        CR3_TARGET_1 = 0x600a,
        /// CR3-target value 2.
        CR3_TARGET_2 = 0x600c,
        /// CR3-target value 3.
        CR3_TARGET_3 = 0x600e,
    }
    "Natural-width read-only data fields": ReadOnly, Natural {
        /// Exit qualification.
        EXIT_QUALIFICATION = 0x6400,
        /// I/O RCX.
        IO_RCX = 0x6402,
        /// I/O RSI.
        IO_RSI = 0x6404,
        /// I/O RDI.
        IO_RDI = 0x6406,
        /// I/O RIP.
        IO_RIP = 0x6408,
        /// Guest-linear address.
        GUEST_LINEAR_ADDRESS = 0x640a,
    }
    "Natural-width guest-state fields": Guest, Natural {
        /// Guest CR0.
        GUEST_CR0 = 0x6800,
        /// Guest CR3.
        GUEST_CR3 = 0x6802,
        /// Guest CR4.
        GUEST_CR4 = 0x6804,
        /// Guest ES base.
        GUEST_ES_BASE = 0x6806,
        /// Guest CS base.
        GUEST_CS_BASE = 0x6808,
        /// Guest SS base.
        GUEST_SS_BASE = 0x680a,
        /// Guest DS base.
        GUEST_DS_BASE = 0x680c,
        /// Guest FS base.
        GUEST_FS_BASE = 0x680e,
        /// Guest GS base.
        GUEST_GS_BASE = 0x6810,
        /// Guest LDTR base.
        GUEST_LDTR_BASE = 0x6812,
        /// Guest TR base.
        GUEST_TR_BASE = 0x6814,
        /// Guest GDTR base.
        GUEST_GDTR_BASE = 0x6816,
        /// Guest IDTR base.
        GUEST_IDTR_BASE = 0x6818,
        /// Guest DR7.
        GUEST_DR7 = 0x681a,
        /// Guest RSP.
        GUEST_RSP = 0x681c,
        /// Guest RIP.
        GUEST_RIP = 0x681e,
        /// Guest RFLAGS.
        GUEST_RFLAGS = 0x6820,
        /// Guest pending debug exceptions.
        GUEST_PENDING_DEBUG = 0x6822,
        /// Guest IA32_SYSENTER_ESP.
        GUEST_SYSENTER_ESP = 0x6824,
        /// Guest IA32_SYSENTER_EIP.
        GUEST_SYSENTER_EIP = 0x6826,
        /// Guest IA32_S_CET.
        GUEST_S_CET = 0x6828,
        /// Guest shadow-stack pointer.
        GUEST_SSP = 0x682a,
        /// Guest IA32_INTERRUPT_SSP_TABLE_ADDR.
        GUEST_SSP_TABLE = 0x682c,
    }
    "Natural-width host-state fields": Host, Natural {
        /// Host CR0.
        HOST_CR0 = 0x6c00,
        /// Host CR3.
        HOST_CR3 = 0x6c02,
        /// Host CR4.
        HOST_CR4 = 0x6c04,
        /// Host FS base.
        HOST_FS_BASE = 0x6c06,
        /// Host GS base.
        HOST_GS_BASE = 0x6c08,
        /// Host TR base.
        HOST_TR_BASE = 0x6c0a,
        /// Host GDTR base.
        HOST_GDTR_BASE = 0x6c0c,
        /// Host IDTR base.
        HOST_IDTR_BASE = 0x6c0e,
        /// Host IA32_SYSENTER_ESP.
        HOST_SYSENTER_ESP = 0x6c10,
        /// Host IA32_SYSENTER_EIP.
        HOST_SYSENTER_EIP = 0x6c12,
        /// Host RSP.
        HOST_RSP = 0x6c14,
        /// Host RIP.
        HOST_RIP = 0x6c16,
        /// Host IA32_S_CET.
        HOST_S_CET = 0x6c18,
        /// Host shadow-stack pointer.
        HOST_SSP = 0x6c1a,
        /// Host IA32_INTERRUPT_SSP_TABLE_ADDR.
        HOST_SSP_TABLE = 0x6c1c,
    }
}
